//! Sandboxes without machines, so that the wire protocol is proven without waiting for any.

use super::*;
use crate::http::list::{ListQuery, Page};

/// Sandboxes without machines: the states and errors the lifecycle promises, and nothing behind them.
#[derive(Default)]
pub(super) struct Pretended {
    pub(super) views: Mutex<BTreeMap<SandboxId, (TeamId, SandboxView)>>,
    pub(super) snapshots: Mutex<Vec<SnapshotView>>,
    /// Makes creates wait, so that others come while one is under way.
    pub(super) creating: tokio::sync::Mutex<()>,
}

impl Pretended {
    fn with<T>(
        &self,
        team: &TeamId,
        id: &SandboxId,
        change: impl FnOnce(&mut SandboxView) -> Result<T, LifecycleError>,
    ) -> Result<T, LifecycleError> {
        let mut views = self.views.lock().unwrap();
        let entry = views.get_mut(id).filter(|(owner, _)| owner == team);
        let (_, view) = entry.ok_or_else(|| LifecycleError::NotFound(id.clone()))?;
        change(view)
    }
}

fn start(view: &mut SandboxView, timeout_s: i64) {
    view.state = VisibleState::Running;
    view.started_at = Timestamp::now();
    view.end_at = view.started_at + SignedDuration::from_secs(timeout_s);
}

#[async_trait]
impl Lifecycle for Pretended {
    async fn create(&self, team: &TeamId, asked: CreateSandbox) -> Result<SandboxView, LifecycleError> {
        let _turn = self.creating.lock().await;
        if asked.timeout_s <= 0 {
            return Err(LifecycleError::TimeoutNotPositive);
        }
        if asked.template != "base" {
            let known = vec!["base".to_owned()];
            return Err(LifecycleError::TemplateNotFound { asked: asked.template, known });
        }
        let mut view = SandboxView {
            id: asked.id,
            template_id: "tbase".parse().unwrap(),
            template_name: "base".to_owned(),
            state: VisibleState::Running,
            started_at: Timestamp::now(),
            end_at: Timestamp::now(),
            shape: Shape { vcpus: 1, memory_mib: 512, disk_mib: 8192 },
            envd_version: "0.6.13".to_owned(),
            access_token: asked.secure.then(|| "token".to_owned()),
            traffic_token: (!asked.network.ingress.allow_public_traffic).then(|| "traffic".to_owned()),
            metadata: asked.metadata,
            on_timeout: asked.on_timeout,
            filesystem_only: false,
            auto_resume: asked.auto_resume,
            allow_internet: asked.allow_internet,
            network: asked.network,
            idle_timeout_s: asked.idle_timeout_s,
            retention_days: asked.retention_days,
            kept_until: None,
            held_up: None,
            durable: true,
        };
        start(&mut view, asked.timeout_s);
        self.views.lock().unwrap().insert(view.id.clone(), (team.clone(), view.clone()));
        Ok(view)
    }

    async fn list(&self, team: &TeamId, query: &ListQuery) -> Page<SandboxView> {
        let views = self.views.lock().unwrap();
        query.page(views.values().filter(|(owner, _)| owner == team).map(|(_, view)| view.clone()).collect())
    }

    async fn get(&self, team: &TeamId, id: &SandboxId) -> Result<SandboxView, LifecycleError> {
        self.with(team, id, |view| Ok(view.clone()))
    }

    async fn pause(
        &self,
        team: &TeamId,
        id: &SandboxId,
        keep_memory: bool,
        _: bool,
    ) -> Result<(), LifecycleError> {
        self.with(team, id, |view| match view.state {
            VisibleState::Paused => Err(LifecycleError::AlreadyPaused(id.clone())),
            VisibleState::Running => {
                view.state = VisibleState::Paused;
                view.filesystem_only = !keep_memory;
                view.end_at = Timestamp::now();
                Ok(())
            }
        })
    }

    async fn resume(
        &self,
        team: &TeamId,
        id: &SandboxId,
        timeout_s: i64,
        on_timeout: Option<OnTimeout>,
        _: bool,
    ) -> Result<SandboxView, LifecycleError> {
        self.with(team, id, |view| match view.state {
            VisibleState::Running => Err(LifecycleError::AlreadyRunning(id.clone())),
            VisibleState::Paused => {
                start(view, timeout_s);
                view.on_timeout = on_timeout.unwrap_or(view.on_timeout);
                Ok(view.clone())
            }
        })
    }

    async fn connect(
        &self,
        team: &TeamId,
        id: &SandboxId,
        timeout_s: i64,
        _: bool,
    ) -> Result<(SandboxView, Connected), LifecycleError> {
        self.with(team, id, |view| match view.state {
            VisibleState::Running => Ok((view.clone(), Connected::AlreadyRunning)),
            VisibleState::Paused => {
                start(view, timeout_s);
                Ok((view.clone(), Connected::Resumed))
            }
        })
    }

    async fn set_timeout(&self, team: &TeamId, id: &SandboxId, timeout_s: i64) -> Result<(), LifecycleError> {
        self.with(team, id, |view| match view.state {
            VisibleState::Paused => Err(LifecycleError::Paused(id.clone())),
            VisibleState::Running => {
                view.end_at = Timestamp::now() + SignedDuration::from_secs(timeout_s);
                Ok(())
            }
        })
    }

    async fn refresh(&self, team: &TeamId, id: &SandboxId, _: i64) -> Result<(), LifecycleError> {
        self.with(team, id, |_| Ok(()))
    }

    async fn set_egress(
        &self,
        team: &TeamId,
        id: &SandboxId,
        egress: Egress,
        allow_internet: bool,
    ) -> Result<(), LifecycleError> {
        self.with(team, id, |view| match view.state {
            VisibleState::Paused => Err(LifecycleError::Paused(id.clone())),
            VisibleState::Running => {
                view.network.egress = egress;
                view.allow_internet = allow_internet;
                Ok(())
            }
        })
    }

    async fn kill(&self, team: &TeamId, id: &SandboxId) -> Result<(), LifecycleError> {
        self.with(team, id, |_| Ok(()))?;
        self.views.lock().unwrap().remove(id);
        Ok(())
    }

    async fn snapshot(
        &self,
        team: &TeamId,
        id: &SandboxId,
        name: Option<&str>,
        _: bool,
    ) -> Result<SnapshotView, LifecycleError> {
        self.with(team, id, |view| match view.state {
            VisibleState::Paused => Err(LifecycleError::Paused(id.clone())),
            VisibleState::Running => Ok(()),
        })?;
        let id = name.map_or("tnone:default".to_owned(), |name| format!("default/{name}:default"));
        let names = name.iter().map(|_| id.clone()).collect();
        let taken = SnapshotView { id, names, created_at: Timestamp::now() };
        self.snapshots.lock().unwrap().insert(0, taken.clone());
        Ok(taken)
    }

    async fn snapshots(
        &self,
        _: &TeamId,
        _: Option<&SandboxId>,
        _: Option<&str>,
    ) -> Result<Vec<SnapshotView>, LifecycleError> {
        Ok(self.snapshots.lock().unwrap().clone())
    }

    async fn delete_snapshot(&self, _: &TeamId, asked: &str) -> Result<(), LifecycleError> {
        let mut snapshots = self.snapshots.lock().unwrap();
        let at = snapshots.iter().position(|taken| taken.id == asked);
        let unknown = LifecycleError::TemplateNotFound { asked: asked.to_owned(), known: vec![] };
        snapshots.remove(at.ok_or(unknown)?);
        Ok(())
    }

    async fn fork(
        &self,
        team: &TeamId,
        id: &SandboxId,
        timeout_s: i64,
        count: usize,
    ) -> Result<Vec<Result<SandboxView, LifecycleError>>, LifecycleError> {
        let parent = self.with(team, id, |view| match view.state {
            VisibleState::Paused => Err(LifecycleError::NotRunning(id.clone())),
            VisibleState::Running => Ok(view.clone()),
        })?;
        let mut views = self.views.lock().unwrap();
        let children = (0..count).map(|_| {
            let mut child = SandboxView { id: SandboxId::random(), ..parent.clone() };
            start(&mut child, timeout_s);
            views.insert(child.id.clone(), (team.clone(), child.clone()));
            Ok(child)
        });
        Ok(children.collect())
    }

    async fn console_log(&self, team: &TeamId, id: &SandboxId) -> Result<String, LifecycleError> {
        self.with(team, id, |_| Ok("[    0.1] Linux\r\n\r\nready\r\n".to_owned()))
    }

    async fn metrics(
        &self,
        team: &TeamId,
        id: &SandboxId,
        start: i64,
        end: i64,
    ) -> Result<Vec<MetricPoint>, LifecycleError> {
        let points = [100, 200, 300].map(point);
        let within = |point: &MetricPoint| (start..=end).contains(&point.at.as_second());
        self.with(team, id, |_| Ok(points.into_iter().filter(within).collect()))
    }

    async fn newest_metrics(&self, team: &TeamId, ids: &[SandboxId]) -> Vec<(SandboxId, MetricPoint)> {
        ids.iter()
            .filter(|id| self.with(team, id, |_| Ok(())).is_ok())
            .map(|id| (id.clone(), point(300)))
            .collect()
    }

    async fn logs(
        &self,
        team: &TeamId,
        id: &SandboxId,
        query: LogQuery,
    ) -> Result<Vec<LogRecord>, LifecycleError> {
        let record = |(seq, level, message): (u64, &str, &str)| {
            let fields = json!({"pid": "42", "cmd": "/bin/bash -l -c make", "stream": "stdout"});
            let record = json!({"boot_id": "b", "seq": seq, "at_us": seq * 1_000_500, "level": level,
                "logger": "process", "message": message, "fields": fields});
            serde_json::from_value(record).unwrap()
        };
        let lines = [(1, "info", "one"), (2, "error", "two"), (3, "info", "three")];
        self.with(team, id, |_| Ok(query.select(lines.map(record).into())))
    }

    async fn plan_collection(&self) -> Result<Plan, CollectError> {
        Ok(Plan::default())
    }

    async fn collect(&self) -> Result<Collected, CollectError> {
        Ok(Collected::default())
    }
}

fn point(second: i64) -> MetricPoint {
    MetricPoint {
        at: Timestamp::from_second(second).unwrap(),
        cpu_count: 1,
        cpu_used_pct: 12.5,
        mem_total: 512,
        mem_used: 256,
        mem_cache: 128,
        disk_used: 1024,
        disk_total: 8192,
    }
}
