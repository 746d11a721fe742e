//! The RPC service `filesystem.Filesystem`.

use std::path::PathBuf;

use connectrpc::{
    ConnectError, Encodable, RequestContext, Response, ServiceRequest, ServiceResult, ServiceStream,
};
use torpor_envd_api::buffa::MessageField;
use torpor_envd_api::filesystem::{
    CreateWatcherRequest, CreateWatcherResponse, Filesystem, GetWatcherEventsRequest,
    GetWatcherEventsResponse, ListDirRequest, ListDirResponse, MakeDirRequest, MakeDirResponse, MoveRequest,
    MoveResponse, RemoveRequest, RemoveResponse, RemoveWatcherRequest, RemoveWatcherResponse, StatRequest,
    StatResponse, WatchDirRequest, WatchDirResponse,
};

use super::entry::Detail;
use super::error::{FileError, off_thread};
use super::operations;
use super::place::Owner;
use super::resolve_path;
use super::watch::polled::Watchers;
use super::watch::{Watch, WatchOptions, stream};
use crate::auth::rpc_user;
use crate::server::{Shared, keepalive_interval};
use crate::users::User;

/// Serves the RPCs.
#[derive(Debug)]
pub(crate) struct FilesService {
    state: Shared,
    watchers: Watchers,
}

// === impl FilesService ===

impl FilesService {
    /// A service without watchers.
    pub(crate) fn new(state: Shared) -> Self {
        Self { state, watchers: Watchers::default() }
    }

    fn user(&self, context: &RequestContext) -> Result<User, ConnectError> {
        rpc_user(&self.state, context.headers())
    }

    fn path(&self, user: &User, path: &str) -> Result<PathBuf, FileError> {
        resolve_path(&self.state, user, path)
    }
}

fn owner(user: &User) -> Owner {
    Owner { uid: user.uid, gid: user.gid }
}

impl Filesystem for FilesService {
    async fn stat<'a>(
        &'a self,
        context: RequestContext,
        request: ServiceRequest<'_, StatRequest>,
    ) -> ServiceResult<impl Encodable<StatResponse> + Send + use<'a>> {
        let path = self.path(&self.user(&context)?, request.path)?;
        let detail = Detail::of(&context);
        let entry = off_thread(move || operations::stat(&path, detail)).await?;
        Response::ok(StatResponse { entry: MessageField::some(entry), ..Default::default() })
    }

    async fn make_dir<'a>(
        &'a self,
        context: RequestContext,
        request: ServiceRequest<'_, MakeDirRequest>,
    ) -> ServiceResult<impl Encodable<MakeDirResponse> + Send + use<'a>> {
        let user = self.user(&context)?;
        let path = self.path(&user, request.path)?;
        let detail = Detail::of(&context);
        let entry = off_thread(move || operations::make_directory(&path, owner(&user), detail)).await?;
        Response::ok(MakeDirResponse { entry: MessageField::some(entry), ..Default::default() })
    }

    async fn r#move<'a>(
        &'a self,
        context: RequestContext,
        request: ServiceRequest<'_, MoveRequest>,
    ) -> ServiceResult<impl Encodable<MoveResponse> + Send + use<'a>> {
        let user = self.user(&context)?;
        let source = self.path(&user, request.source)?;
        let destination = self.path(&user, request.destination)?;
        let detail = Detail::of(&context);
        let entry =
            off_thread(move || operations::rename(&source, &destination, owner(&user), detail)).await?;
        Response::ok(MoveResponse { entry: MessageField::some(entry), ..Default::default() })
    }

    async fn list_dir<'a>(
        &'a self,
        context: RequestContext,
        request: ServiceRequest<'_, ListDirRequest>,
    ) -> ServiceResult<impl Encodable<ListDirResponse> + Send + use<'a>> {
        let path = self.path(&self.user(&context)?, request.path)?;
        let detail = Detail::of(&context);
        // Not given means the directory's own entries.
        let depth = request.depth.max(1);
        let entries = off_thread(move || operations::list(&path, depth, detail)).await?;
        Response::ok(ListDirResponse { entries, ..Default::default() })
    }

    async fn remove<'a>(
        &'a self,
        context: RequestContext,
        request: ServiceRequest<'_, RemoveRequest>,
    ) -> ServiceResult<impl Encodable<RemoveResponse> + Send + use<'a>> {
        let path = self.path(&self.user(&context)?, request.path)?;
        off_thread(move || operations::remove(&path)).await?;
        Response::ok(RemoveResponse::default())
    }

    async fn watch_dir(
        &self,
        context: RequestContext,
        request: ServiceRequest<'_, WatchDirRequest>,
    ) -> ServiceResult<ServiceStream<impl Encodable<WatchDirResponse> + Send + use<>>> {
        let options = WatchOptions {
            path: self.path(&self.user(&context)?, request.path)?,
            recursive: request.recursive,
            include_entry: request.include_entry,
            allow_network_mounts: request.allow_network_mounts,
            detail: Detail::of(&context),
        };
        let watch = Watch::start(options).await?;
        let keepalive = keepalive_interval(context.headers());
        Response::stream_ok(stream::messages(watch, keepalive, context.deadline()))
    }

    async fn create_watcher<'a>(
        &'a self,
        context: RequestContext,
        request: ServiceRequest<'_, CreateWatcherRequest>,
    ) -> ServiceResult<impl Encodable<CreateWatcherResponse> + Send + use<'a>> {
        let options = WatchOptions {
            path: self.path(&self.user(&context)?, request.path)?,
            recursive: request.recursive,
            include_entry: request.include_entry,
            allow_network_mounts: request.allow_network_mounts,
            detail: Detail::of(&context),
        };
        let watcher_id = self.watchers.create(options).await?;
        Response::ok(CreateWatcherResponse { watcher_id, ..Default::default() })
    }

    async fn get_watcher_events<'a>(
        &'a self,
        _context: RequestContext,
        request: ServiceRequest<'_, GetWatcherEventsRequest>,
    ) -> ServiceResult<impl Encodable<GetWatcherEventsResponse> + Send + use<'a>> {
        let events = self.watchers.fetch(request.watcher_id).await?;
        Response::ok(GetWatcherEventsResponse { events, ..Default::default() })
    }

    async fn remove_watcher<'a>(
        &'a self,
        _context: RequestContext,
        request: ServiceRequest<'_, RemoveWatcherRequest>,
    ) -> ServiceResult<impl Encodable<RemoveWatcherResponse> + Send + use<'a>> {
        self.watchers.remove(request.watcher_id)?;
        Response::ok(RemoveWatcherResponse::default())
    }
}
