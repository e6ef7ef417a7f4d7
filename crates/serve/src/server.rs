//! Listens, speaks both protocols on every address, and ends gently.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Router};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{self, Runtime};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::confidential::{Came, Confidential};
use crate::engine::Loader;
use crate::service::Service;
use crate::settings::Settings;
use crate::{confidential, grpc, http};

/// How long a client may take for the head of a request.
const HEAD_WITHIN: Duration = Duration::from_secs(20);

/// How long a client may take for the handshake of TLS.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);

/// How often a quiet HTTP/2 connection is asked whether it still is one, and how long it may take to say so.
const PING_EVERY: Duration = Duration::from_secs(30);
const PING_WITHIN: Duration = Duration::from_secs(20);

/// Calls at the same time on one HTTP/2 connection; further ones wait at the client.
const STREAMS: u32 = 128;

/// Bytes that a client may have on its way on one HTTP/2 connection.
const WINDOW: u32 = 1 << 20;

/// The most bytes of a request's head.
const HEAD: u32 = 32 << 10;

/// Threads that speak with clients.
const SPEAKERS: usize = 2;

/// Why a server does not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The folder of models cannot be read.
    #[error("model repository {}: {why}", folder.display())]
    Repository {
        /// The folder.
        folder: std::path::PathBuf,
        /// Why not.
        why: std::io::Error,
    },
    /// An address cannot be listened on.
    #[error("cannot listen on {address}: {why}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why not.
        why: std::io::Error,
    },
    /// Nobody vouches for the TLS key.
    #[error("an address for TLS needs a platform that vouches for the key")]
    NoEvidence,
    /// The TLS key cannot be used.
    #[error(transparent)]
    Channel(#[from] larvatus_attest::channel::ChannelError),
    /// The system gives no threads.
    #[error("the server cannot start: {0}")]
    Runtime(std::io::Error),
}

/// A server that listens and whose models are not loaded yet.
pub struct Server {
    runtime: Runtime,
    service: Arc<Service>,
    listeners: Vec<Listening>,
    stop: watch::Sender<bool>,
}

/// A port, and TLS where it is spoken there.
struct Listening {
    port: TcpListener,
    tls: Option<TlsAcceptor>,
}

/// Tells a server to stop, from any thread.
#[derive(Clone, Debug)]
pub struct Stopper(watch::Sender<bool>);

impl Stopper {
    /// Takes nothing on any more; what has begun is finished within [`Settings::drain`].
    pub fn stop(&self) {
        self.0.send_replace(true);
    }
}

impl Server {
    /// Listens. Requests are answered once [`run`](Self::run) is called.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn bind(
        settings: Settings,
        loader: Box<dyn Loader>,
        confidential: Option<Confidential>,
    ) -> Result<Self, StartError> {
        let tls = match &confidential {
            Some(confidential) => {
                let config = confidential.identity.server_config(&[b"h2", b"http/1.1"])?;
                Some(TlsAcceptor::from(Arc::new(config)))
            }
            None if settings.listen_tls.is_empty() => None,
            None => return Err(StartError::NoEvidence),
        };
        let runtime = runtime::Builder::new_multi_thread()
            .worker_threads(SPEAKERS)
            .max_blocking_threads(4)
            .thread_name("larvatus-speaker")
            .enable_all()
            .build()
            .map_err(StartError::Runtime)?;
        let addresses = settings.listen.iter().map(|address| (*address, None));
        let over_tls = settings.listen_tls.iter();
        let over_tls = over_tls.map(|address| (*address, tls.clone()));
        let addresses: Vec<_> = addresses.chain(over_tls).collect();
        let folder = settings.models.clone();
        let service = Service::start(settings, loader, confidential)
            .map_err(|why| StartError::Repository { folder, why })?;
        let listen = |(address, tls): (SocketAddr, Option<TlsAcceptor>)| {
            let bound = runtime.block_on(TcpListener::bind(address));
            let port = bound.map_err(|why| StartError::Listen { address, why })?;
            Ok::<_, StartError>(Listening { port, tls })
        };
        let listeners = addresses
            .into_iter()
            .map(listen)
            .collect::<Result<_, _>>()?;
        Ok(Self {
            runtime,
            service,
            listeners,
            stop: watch::Sender::new(false),
        })
    }

    /// Where it listens, with the ports that the system chose.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        let bound = self.listeners.iter().map(|of| of.port.local_addr());
        bound.filter_map(Result::ok).collect()
    }

    /// Something to stop it with.
    pub fn stopper(&self) -> Stopper {
        Stopper(self.stop.clone())
    }

    /// Loads the models, while it answers already; serves until it is stopped or the process gets SIGTERM or SIGINT,
    /// then finishes what has begun.
    ///
    /// # Errors
    /// Where the system gives no signals.
    pub fn run(self) -> std::io::Result<()> {
        let Self {
            runtime,
            service,
            listeners,
            stop,
        } = self;
        runtime.block_on(async {
            stop_on_signals(&stop)?;
            let loading = Arc::clone(&service);
            tokio::task::spawn_blocking(move || loading.load_all());
            let router = router(&service);
            let room = Arc::new(Semaphore::new(service.settings.connections));
            let mut serving = JoinSet::new();
            for listener in listeners {
                serving.spawn(listen(
                    listener,
                    router.clone(),
                    Arc::clone(&service),
                    Arc::clone(&room),
                    stop.subscribe(),
                ));
            }
            while serving.join_next().await.is_some() {}
            std::io::Result::Ok(())
        })?;
        service.stop();
        runtime.shutdown_timeout(Duration::from_secs(1));
        Ok(())
    }
}

/// SIGTERM and SIGINT stop the server.
fn stop_on_signals(stop: &watch::Sender<bool>) -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
        let mut signals = signal(kind)?;
        let stop = stop.clone();
        tokio::spawn(async move {
            if signals.recv().await.is_some() {
                stop.send_replace(true);
            }
        });
    }
    Ok(())
}

/// All that is answered, whatever the protocol.
pub(crate) fn router(service: &Arc<Service>) -> Router {
    let grpc = grpc::server(Arc::clone(service));
    let calls = Router::new()
        .route_service(&format!("{}{{*call}}", grpc::PATH), grpc)
        .layer(from_fn_with_state(Arc::clone(service), admit_call));
    http::routes(Arc::clone(service))
        .merge(confidential::routes(Arc::clone(service)))
        .merge(calls)
}

/// Sends gRPC inferences away before their messages are read, where there is no room for them; and holds them to the
/// deadline while they are read. (HTTP does the same where it reads bodies.)
async fn admit_call(State(service): State<Arc<Service>>, request: Request, next: Next) -> Response {
    if !request.uri().path().ends_with("/ModelInfer") {
        return next.run(request).await;
    }
    let started = std::time::Instant::now();
    let came = request.extensions().get::<Came>().copied();
    let admitted = confidential::may_be_in_clear(&service, came).and_then(|()| service.admit());
    let refused = match admitted {
        Ok(_admission) => {
            let until = tokio::time::Instant::from_std(service.deadline(None));
            match tokio::time::timeout_at(until, next.run(request)).await {
                Ok(response) => return response,
                Err(_) => crate::refusal::Refusal::Deadline,
            }
        }
        Err(why) => why,
    };
    service.count("", Some(&refused), started);
    tonic::Status::from(refused)
        .into_http::<tonic::body::Body>()
        .map(Body::new)
        .into_response()
}

/// Accepts connections until it is told to stop, then waits for those that are open, but not for ever.
async fn listen(
    listener: Listening,
    router: Router,
    service: Arc<Service>,
    room: Arc<Semaphore>,
    mut stop: watch::Receiver<bool>,
) {
    let graceful = GracefulShutdown::new();
    let builder = builder();
    let service_ref = &service;
    loop {
        let next = async {
            let place = Arc::clone(&room).acquire_owned().await;
            (place, listener.port.accept().await)
        };
        let (place, accepted) = tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => break,
            next = next => next,
        };
        let stream: TcpStream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors, say: others may be closed meanwhile.
                tracing::warn!(%error, "a connection was not accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        // Answers go out at once.
        let _ = stream.set_nodelay(true);
        let (router, builder, watcher) = (router.clone(), builder.clone(), graceful.watcher());
        let (service, tls) = (Arc::clone(service_ref), listener.tls.clone());
        tokio::spawn(async move {
            let _place = place;
            service
                .metrics
                .connections()
                .fetch_add(1, Ordering::Relaxed);
            if let Err(error) = converse(stream, tls, router, &builder, watcher).await {
                tracing::debug!(error, "a connection ended");
            }
            service
                .metrics
                .connections()
                .fetch_sub(1, Ordering::Relaxed);
        });
    }
    drop(listener);
    service.drain();
    let within = service.settings.drain;
    if tokio::time::timeout(within, graceful.shutdown())
        .await
        .is_err()
    {
        tracing::warn!(?within, "connections were open to the end");
    }
}

/// One connection, from its handshake to its end.
async fn converse(
    stream: TcpStream,
    tls: Option<TlsAcceptor>,
    router: Router,
    builder: &Builder<TokioExecutor>,
    watcher: Watcher,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let Some(tls) = tls else {
        let answers = TowerToHyperService::new(router.layer(Extension(Came(None))));
        let connection = builder.serve_connection(TokioIo::new(stream), answers);
        return watcher.watch(connection.into_owned()).await;
    };
    let stream = tokio::time::timeout(HANDSHAKE_WITHIN, tls.accept(stream)).await??;
    let exporter = larvatus_attest::channel::exporter(stream.get_ref().1)?;
    let answers = TowerToHyperService::new(router.layer(Extension(Came(Some(exporter)))));
    let connection = builder.serve_connection(TokioIo::new(stream), answers);
    watcher.watch(connection.into_owned()).await
}

fn builder() -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_WITHIN)
        .max_buf_size(HEAD as usize * 4);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_WITHIN)
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(HEAD)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW * 4);
    builder
}
