//! What the database has to be, and the SQL that makes it so.
//!
//! Two roles: the *owner* makes and migrates the tables, the *gateway* role may add to the log and never change or remove
//! an entry. A gateway looks at its own privileges when it connects and refuses to work with too many, with a server that
//! is too old, a standby, or one that says "committed" before it is durable.

use sqlx::migrate::{MigrateError, Migrator};
use sqlx::postgres::PgConnection;
use sqlx::{Connection as _, Row as _};

use super::super::Error;
use super::{Server, inside};

static MIGRATIONS: Migrator = sqlx::migrate!("migrations/postgres");

/// What the gateway's role may do, by table. Whatever is not here it may not.
const PRIVILEGES: [(&str, &str); 13] = [
    ("entries", "SELECT, INSERT"),
    ("payloads", "SELECT, INSERT, DELETE"),
    ("log_meta", "SELECT, INSERT, UPDATE"),
    ("log_head", "SELECT, INSERT, UPDATE"),
    ("targets", "SELECT, INSERT, UPDATE"),
    ("tiles", "SELECT, INSERT"),
    ("checkpoints", "SELECT, INSERT, UPDATE, DELETE"),
    ("log_keys", "SELECT, INSERT"),
    ("changes", "SELECT, INSERT, UPDATE, DELETE, TRUNCATE"),
    ("projection", "SELECT, UPDATE"),
    ("bundles", "SELECT, INSERT"),
    ("admin_tokens", "SELECT, INSERT, UPDATE"),
    ("_sqlx_migrations", "SELECT"),
];

/// Refuses a server the log cannot rely on; `writes`: for a gateway, not only for a reader.
pub(super) async fn check(connection: &mut PgConnection, writes: bool) -> Result<(), Error> {
    let row = sqlx::query(
        "SELECT current_setting('server_version_num')::bigint, pg_is_in_recovery(), current_setting('synchronous_commit'), \
         to_regclass('_sqlx_migrations') IS NOT NULL, current_user::text",
    );
    let row = row.persistent(false).fetch_one(&mut *connection).await.map_err(|error| inside(&error))?;
    let read = || Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?, row.try_get(3)?, row.try_get(4)?));
    let (version, standby, synchronous, there, user): (i64, bool, String, bool, String) =
        read().map_err(|error: sqlx::Error| inside(&error))?;
    if version < 130_000 {
        return Err(Error::Fatal(format!(
            "PostgreSQL is version {}; 13 or newer is needed",
            version / 10_000
        )));
    }
    if !there {
        return Err(Error::Fatal(
            "the database holds no tables of Patchwarden; run `patchwarden store migrate` as their owner"
                .to_owned(),
        ));
    }
    check_schema(connection).await?;
    if !writes {
        return Ok(());
    }
    if standby {
        return Err(Error::Wait("PostgreSQL is a standby; the log needs the primary".to_owned()));
    }
    if !matches!(&*synchronous, "on" | "remote_apply") {
        return Err(Error::Fatal(format!(
            "synchronous_commit is `{synchronous}` for the role {user}: a commit would be answered before it is durable; set it to on or remote_apply"
        )));
    }
    check_privileges(connection, &user).await
}

async fn check_schema(connection: &mut PgConnection) -> Result<(), Error> {
    let have = sqlx::query_scalar("SELECT COALESCE(MAX(version), 0) FROM _sqlx_migrations WHERE success");
    let have: i64 =
        have.persistent(false).fetch_one(&mut *connection).await.map_err(|error| match inside(&error) {
            Error::Wait(what) => Error::Fatal(what),
            other => other,
        })?;
    let known = MIGRATIONS.iter().map(|migration| migration.version).max().unwrap_or(0);
    if have > known {
        return Err(Error::Fatal(format!(
            "the database was migrated by a newer version (schema {have}, this binary knows {known}); use that version"
        )));
    }
    if have < known {
        return Err(Error::Fatal(format!(
            "the database has schema {have} and this version needs {known}; run `patchwarden store migrate` as the owner of the tables"
        )));
    }
    Ok(())
}

async fn check_privileges(connection: &mut PgConnection, user: &str) -> Result<(), Error> {
    let row = sqlx::query(
        "SELECT pg_has_role(c.relowner, 'MEMBER'), \
         has_table_privilege('entries', 'UPDATE') OR has_any_column_privilege('entries', 'UPDATE'), \
         has_table_privilege('entries', 'DELETE'), has_table_privilege('entries', 'TRUNCATE'), \
         has_table_privilege('payloads', 'UPDATE') OR has_any_column_privilege('payloads', 'UPDATE'), \
         has_table_privilege('payloads', 'TRUNCATE'), has_table_privilege('entries', 'INSERT') \
         FROM pg_class c WHERE c.oid = 'entries'::regclass",
    );
    let row = row.persistent(false).fetch_one(connection).await.map_err(|error| inside(&error))?;
    let has = |place: usize| row.try_get::<bool, _>(place).map_err(|error| inside(&error));
    let what = "`patchwarden store grants` prints the SQL for an owner role and a gateway role";
    if has(0)? {
        return Err(Error::Fatal(format!(
            "the role {user} owns the table entries (or may act as its owner), so it could change the log; {what}"
        )));
    }
    let names = [
        "UPDATE on entries",
        "DELETE on entries",
        "TRUNCATE on entries",
        "UPDATE on payloads",
        "TRUNCATE on payloads",
    ];
    let mut too_many = Vec::new();
    for (place, name) in (1..).zip(names) {
        if has(place)? {
            too_many.push(name);
        }
    }
    if !too_many.is_empty() {
        return Err(Error::Fatal(format!(
            "the role {user} may {}, so it could change the log; {what}",
            too_many.join(", ")
        )));
    }
    if !has(6)? {
        return Err(Error::Fatal(format!("the role {user} may not INSERT on entries; {what}")));
    }
    Ok(())
}

/// Makes or migrates the tables as their owner, and gives `gateway_role` its privileges. The number of migrations done.
pub async fn migrate(server: &Server, gateway_role: Option<&str>) -> Result<usize, Error> {
    let mut connection = server.connect().await?;
    let have = async |connection: &mut PgConnection| {
        let there = sqlx::query_scalar::<_, bool>("SELECT to_regclass('_sqlx_migrations') IS NOT NULL");
        if !there.fetch_one(&mut *connection).await? {
            return Ok(0);
        }
        sqlx::query_scalar::<_, i64>("SELECT COUNT(*) FROM _sqlx_migrations WHERE success")
            .fetch_one(connection)
            .await
    };
    let before = have(&mut connection).await.map_err(|error| inside(&error))?;
    MIGRATIONS.run_direct(None, &mut connection, false).await.map_err(|error| match error {
        MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => match inside(&error) {
            Error::Wait(what) | Error::Refused(what) | Error::Busy(what) => {
                Error::Wait(format!("{server}: {what}"))
            }
            other => other,
        },
        other => Error::Fatal(format!("{server}: {other}; was it migrated by another version?")),
    })?;
    let after = have(&mut connection).await.map_err(|error| inside(&error))?;
    if let Some(role) = gateway_role {
        let text = privileges(role);
        sqlx::raw_sql(sqlx::AssertSqlSafe(text))
            .execute(&mut connection)
            .await
            .map_err(|error| inside(&error))?;
    }
    let _ = connection.close().await;
    Ok(usize::try_from(after - before).unwrap_or(0))
}

/// The SQL for an administrator (roles and database) and for the owner (privileges, once the tables are there).
pub fn grants(database: &str, owner: &str, gateway: &str) -> String {
    let (quoted, as_owner, as_gateway) = (identifier(database), identifier(owner), identifier(gateway));
    format!(
        "-- 1. As an administrator. Give both roles a password or certificate of their own (\\password ROLE).\n\
         CREATE ROLE {as_owner} LOGIN;\n\
         CREATE ROLE {as_gateway} LOGIN;\n\
         CREATE DATABASE {quoted} OWNER {as_owner} TEMPLATE template0 ENCODING 'UTF8';\n\
         REVOKE ALL ON DATABASE {quoted} FROM PUBLIC;\n\
         GRANT CONNECT ON DATABASE {quoted} TO {as_gateway};\n\
         -- In that database:\n\
         -- \\connect {quoted}\n\
         REVOKE ALL ON SCHEMA public FROM PUBLIC;\n\
         GRANT USAGE, CREATE ON SCHEMA public TO {as_owner};\n\
         GRANT USAGE ON SCHEMA public TO {as_gateway};\n\
         \n\
         -- 2. As the owner: make the tables. With --gateway-role this does step 3 as well.\n\
         --    patchwarden store migrate --store postgres://{owner}@HOST/{database} --gateway-role {gateway}\n\
         \n\
         -- 3. As the owner, in that database: what a gateway may do, and nothing else.\n{}",
        privileges(gateway)
    )
}

fn privileges(role: &str) -> String {
    let role = identifier(role);
    let mut text = String::new();
    for (table, privileges) in PRIVILEGES {
        text += &format!(
            "REVOKE ALL ON {table} FROM PUBLIC, {role};\nGRANT {privileges} ON {table} TO {role};\n"
        );
    }
    text
}

/// A name as SQL writes it.
fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
