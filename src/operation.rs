//! What is governed, as data: guarded objects, the operations on them, and the catalogue of every write with a like
//! effect.
//!
//! An [`Object`] says how its state is read and, for each field, its kind, its secrecy and what leaving it out does. An
//! [`Operation`] is one way to change it. The [`Catalogue`] maps methods and path templates to operations, watched and
//! open writes. All three are read from the bundle's files; a file that leaves something unsaid does not load.

mod field;
mod kind;
mod secret;
mod state;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;

pub use field::{Entry, Field};
pub use kind::{Kind, Misfit, Side, js_trim, split_patterns, union};
pub use state::{Edit, Revision, State, Stored, Unknown, Unreadable, diff, diff_recorded, summary};

/// A guarded object, as its file says it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Object {
    /// Version of the file: stands in every record.
    pub version: u32,
    /// `jwt-auth`
    pub name: String,
    /// Kind of the target: `identity`.
    pub target: String,
    /// Path template of the object, with the one parameter `{identityId}`.
    pub path: String,
    /// The member of the answer that holds the state.
    pub envelope: String,
    /// The member that repeats the target's id.
    pub target_member: String,
    /// Exactly what the upstream says when nothing is attached.
    pub absent_message: String,
    /// Which members identify and date a version of the row.
    pub revision: RevisionMembers,
    /// Members that belong to the answer but not to the state.
    pub volatile: Vec<String>,
    /// The field that chooses the branch in `omitted`.
    pub branch: String,
    /// Every field of the state.
    pub fields: BTreeMap<String, FieldSpec>,
    /// What leaving a field out does.
    pub omitted: OmittedTable,
}

/// Names of the two members that make a revision.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RevisionMembers {
    /// The row's id: another one after a removal and a new attach.
    pub row: String,
    /// When the row was last written.
    pub at: String,
}

/// One field.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FieldSpec {
    /// Its kind.
    pub kind: Kind,
    /// `open` or `secret`; there is no default.
    pub secrecy: Secrecy,
    /// The values of a `choice`.
    #[serde(default)]
    pub choices: Vec<String>,
    /// The argument of the Terraform provider that sets it.
    pub terraform: String,
}

/// Whether a field's value may be written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Secrecy {
    /// It may.
    Open,
    /// Only its keyed digest may.
    Secret,
}

/// What leaving a field out does, for each way of writing.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OmittedTable {
    /// On POST.
    pub create: BTreeMap<String, Omitted>,
    /// On PATCH.
    pub overlay: BTreeMap<String, Omitted>,
}

/// What leaving one field out does.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(untagged)]
pub enum Omitted {
    /// The same in every branch.
    Always(Omission),
    /// By the value of the branch field after the request.
    ByBranch(BTreeMap<String, Omission>),
}

/// The effect itself.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Omission {
    /// The stored value stays.
    Keeps,
    /// The schema refuses such a request.
    Required,
    /// Nobody can know.
    Opaque,
    /// The upstream writes this value (in the request's shape).
    Writes(Value),
}

/// How an operation writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Write {
    /// Lays the request over what is stored.
    Overlay,
    /// Makes a new one.
    Create,
    /// Takes it away.
    Remove,
}

/// One governed operation.
#[derive(Debug)]
pub struct Operation {
    /// `jwt-auth.update`
    pub name: String,
    /// The one method.
    pub method: http::Method,
    /// How it writes.
    pub write: Write,
    /// What it writes.
    pub object: Arc<Object>,
}

/// What happens to requests on a route.
#[derive(Clone, Debug)]
pub enum Class {
    /// Judged and recorded.
    Governed(Arc<Operation>),
    /// Forwarded and recorded.
    Watched,
    /// Forwarded.
    Open,
}

/// One write of the catalogue.
#[derive(Clone, Debug)]
pub struct CatalogueEntry {
    /// Stands as `operation` in the record.
    pub name: String,
    /// Its method.
    pub method: http::Method,
    /// Path template; `{x}` is a canonical UUID, `{x:word}` one segment of letters, digits, `-` and `_`.
    pub path: String,
    /// What happens to it.
    pub class: Class,
    /// An object whose fields a watched write has under the same names.
    pub shares: Option<Arc<Object>>,
}

/// Every write of the guarded API that decides who may log in.
#[derive(Clone, Debug, Default)]
pub struct Catalogue(pub Vec<CatalogueEntry>);

impl Object {
    /// The state's path for a target.
    pub fn path_of(&self, target_id: &str) -> String {
        self.path.replace("{identityId}", target_id)
    }

    /// What leaving `field` out does when the branch field will hold `branch`.
    pub fn omission(&self, write: Write, field: &str, branch: Option<&str>) -> &Omission {
        let table = match write {
            Write::Create => &self.omitted.create,
            Write::Overlay | Write::Remove => &self.omitted.overlay,
        };
        match table.get(field) {
            Some(Omitted::Always(omission)) => omission,
            Some(Omitted::ByBranch(branches)) => {
                branch.and_then(|branch| branches.get(branch)).unwrap_or(&Omission::Opaque)
            }
            None => &Omission::Opaque,
        }
    }
}
