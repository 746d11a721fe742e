//! Templates: named starting points, each pointing at the snapshot of its newest build.

use jiff::Timestamp;
use sqlx::Row;
use sqlx::sqlite::SqliteRow;
use torpor_types::{Shape, SnapshotId, TemplateId};

use super::keys::parse;
use super::{Registry, RegistryError};

/// A template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TemplateRow {
    /// Its id.
    pub id: TemplateId,
    /// Its name, unique on the node.
    pub name: String,
    /// The snapshot of its newest build.
    pub snapshot_id: SnapshotId,
    /// The size of sandboxes made from it.
    pub shape: Shape,
    /// What its agent implements of the envd protocol.
    pub envd_version: String,
    /// When it was built.
    pub created_at: Timestamp,
}

// === impl Registry ===

impl Registry {
    /// All templates, by name.
    pub async fn templates(&self) -> Result<Vec<TemplateRow>, RegistryError> {
        let rows = sqlx::query("SELECT * FROM templates ORDER BY name").fetch_all(&self.pool).await?;
        rows.iter().map(template_row).collect()
    }

    /// The template of that id or name.
    pub async fn template(&self, id_or_name: &str) -> Result<Option<TemplateRow>, RegistryError> {
        let row = sqlx::query("SELECT * FROM templates WHERE id = ?1 OR name = ?1")
            .bind(id_or_name)
            .fetch_optional(&self.pool)
            .await?;
        row.as_ref().map(template_row).transpose()
    }

    /// Records a build: the template of that name now starts from `snapshot_id`. Keeps the id of a template that
    /// exists, and answers the snapshot it had before.
    pub async fn publish_template(
        &self,
        template: &TemplateRow,
    ) -> Result<Option<SnapshotId>, RegistryError> {
        let mut transaction = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        let before: Option<String> = sqlx::query_scalar("SELECT snapshot_id FROM templates WHERE name = ?")
            .bind(&template.name)
            .fetch_optional(&mut *transaction)
            .await?;
        sqlx::query(
            "INSERT INTO templates (id, name, snapshot_id, vcpus, memory_mib, disk_mib, envd_version, created_at)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?)
             ON CONFLICT (name) DO UPDATE SET snapshot_id = excluded.snapshot_id, vcpus = excluded.vcpus,
                 memory_mib = excluded.memory_mib, disk_mib = excluded.disk_mib,
                 envd_version = excluded.envd_version, created_at = excluded.created_at",
        )
        .bind(template.id.as_str())
        .bind(&template.name)
        .bind(template.snapshot_id.as_str())
        .bind(template.shape.vcpus)
        .bind(template.shape.memory_mib)
        .bind(template.shape.disk_mib)
        .bind(&template.envd_version)
        .bind(template.created_at.to_string())
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await?;
        before.map(|id| parse("templates", &template.name, &id)).transpose()
    }
}

fn template_row(row: &SqliteRow) -> Result<TemplateRow, RegistryError> {
    let id: String = row.get("id");
    Ok(TemplateRow {
        id: parse("templates", &id, &id)?,
        name: row.get("name"),
        snapshot_id: parse("templates", &id, row.get("snapshot_id"))?,
        shape: Shape {
            vcpus: row.get("vcpus"),
            memory_mib: row.get("memory_mib"),
            disk_mib: row.get("disk_mib"),
        },
        envd_version: row.get("envd_version"),
        created_at: parse("templates", &id, row.get("created_at"))?,
    })
}
