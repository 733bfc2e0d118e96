//! stub
//!
//! stub
/// stub
pub struct Permit(Option<bytes::Bytes>);
impl Permit {
    /// stub
    pub fn body(&self) -> Option<&bytes::Bytes> {
        self.0.as_ref()
    }
}
