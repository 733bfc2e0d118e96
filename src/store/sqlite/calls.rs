//! What goes to SQLite in one call.
//!
//! A call hands its text to another thread and waits for its word, which takes longer than most statements. So what only
//! writes is gathered, and goes out with the next statement that asks for something, or when it gets long. The connection
//! is not to be had without sending that first: everything is done in the order in which it was asked for. What a gathered
//! statement meets is told to whoever sends it, and nothing after it in the call is done.

use sqlx::sqlite::{Sqlite, SqliteConnection, SqliteRow};
use sqlx::{Connection as _, QueryBuilder};

use super::super::Error;
use super::inside;

/// Statements of up to so many rows are gathered: of those the same few texts come again and again.
const FEW: usize = 4;

/// A connection, and what waits to be sent over it.
pub(super) struct Calls {
    connection: SqliteConnection,
    gathered: QueryBuilder<Sqlite>,
    /// The transaction that is asked for has not begun.
    is_before_begin: bool,
}

impl Calls {
    pub(super) fn new(connection: SqliteConnection) -> Self {
        Self { connection, gathered: QueryBuilder::new(""), is_before_begin: false }
    }

    /// A transaction begins with what comes next.
    pub(super) async fn begin(&mut self) -> Result<(), Error> {
        self.send().await?;
        self.gathered.push("BEGIN IMMEDIATE;");
        self.is_before_begin = true;
        Ok(())
    }

    /// Takes back what was asked for since.
    pub(super) async fn rollback(&mut self) -> Result<(), Error> {
        self.gathered.reset();
        if std::mem::take(&mut self.is_before_begin) {
            return Ok(());
        }
        match sqlx::raw_sql("ROLLBACK").execute(&mut self.connection).await {
            // It did not begin, or SQLite has taken it back by itself: the error that told of it says more.
            Err(error) if !error.to_string().contains("no transaction is active") => Err(inside(&error)),
            _ => Ok(()),
        }
    }

    /// A statement that writes so many rows.
    pub(super) async fn write(
        &mut self,
        rows: usize,
        statement: impl FnOnce(&mut QueryBuilder<Sqlite>),
    ) -> Result<(), Error> {
        if rows > FEW {
            self.send().await?;
        }
        statement(&mut self.gathered);
        if rows > FEW {
            return self.send().await;
        }
        self.gathered.push(";");
        Ok(())
    }

    /// A statement that says something, after all that waits.
    pub(super) async fn ask(
        &mut self,
        statement: impl FnOnce(&mut QueryBuilder<Sqlite>),
    ) -> Result<Vec<SqliteRow>, Error> {
        statement(&mut self.gathered);
        let rows = self.gathered.build().fetch_all(&mut self.connection).await;
        self.sent();
        rows.map_err(|error| inside(&error))
    }

    /// The connection, once all that waits is done.
    pub(super) async fn connection(&mut self) -> Result<&mut SqliteConnection, Error> {
        self.send().await?;
        Ok(&mut self.connection)
    }

    pub(super) async fn close(self) {
        let _ = self.connection.close().await;
    }

    async fn send(&mut self) -> Result<(), Error> {
        if self.gathered.sql().as_str().is_empty() {
            return Ok(());
        }
        let done = self.gathered.build().execute(&mut self.connection).await;
        self.sent();
        done.map(drop).map_err(|error| inside(&error))
    }

    fn sent(&mut self) {
        self.gathered.reset();
        self.is_before_begin = false;
    }
}
