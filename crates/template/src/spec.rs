//! What a template is.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use torpor_types::{Accelerator, Shape, TemplateId};

use crate::recipe::Recipe;

/// Memory a template gets unless it says otherwise, in MiB.
pub const DEFAULT_MEMORY_MIB: u32 = 512;

/// What to build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TemplateSpec {
    /// Id the template has or gets.
    pub template_id: TemplateId,
    /// Name users create sandboxes by: lower-case letters, digits, `-`, `_`.
    pub name: String,
    /// What is in its root file system.
    pub recipe: Recipe,
    /// Size of its machines.
    pub shape: Shape,
    /// Environment of every process started in its sandboxes.
    pub env: BTreeMap<String, String>,
    /// User that processes run as when the caller names none.
    pub default_user: String,
    /// Directory that processes start in when the caller names none; `None` is the user's home.
    pub default_workdir: Option<String>,
}

/// What is kept of a template's build: the `subject` of its snapshot's manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TemplateRecord {
    /// The template.
    pub template_id: TemplateId,
    /// Its name.
    pub name: String,
    /// Size of its machines.
    pub shape: Shape,
    /// Environment of every process started in its sandboxes.
    pub env: BTreeMap<String, String>,
    /// User that processes run as when the caller names none.
    pub default_user: String,
    /// Directory that processes start in when the caller names none.
    pub default_workdir: Option<String>,
    /// Hash of the recipe.
    pub recipe: String,
    /// BLAKE3 of the agent in it, hexadecimal.
    pub agent_blake3: String,
    /// Release of the kernel it runs.
    pub kernel_release: String,
}

// === impl TemplateSpec ===

impl TemplateSpec {
    /// The template every Torpor has, `base`, for machines run by `accelerator` with so much memory.
    pub fn base(accelerator: Accelerator, memory_mib: u32) -> Self {
        let recipe = Recipe::base();
        let shape = Shape { vcpus: accelerator.default_vcpus(), memory_mib, disk_mib: recipe.disk_mib };
        Self {
            template_id: TemplateId::random(),
            name: "base".to_owned(),
            recipe,
            shape,
            env: BTreeMap::new(),
            default_user: "user".to_owned(),
            default_workdir: None,
        }
    }

    /// The record of a build of this with the agent and kernel named.
    pub fn record(&self, agent_blake3: String, kernel_release: String) -> TemplateRecord {
        TemplateRecord {
            template_id: self.template_id.clone(),
            name: self.name.clone(),
            shape: self.shape,
            env: self.env.clone(),
            default_user: self.default_user.clone(),
            default_workdir: self.default_workdir.clone(),
            recipe: self.recipe.hash(),
            agent_blake3,
            kernel_release,
        }
    }
}
