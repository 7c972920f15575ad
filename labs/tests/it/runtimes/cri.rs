//! The container runtime interface, version 1 (k8s.io/cri-api, `runtime/v1/api.proto`): the calls that the labs need, as a kubelet makes
//! them.

pub mod messages;

use std::path::Path;
use std::time::Duration;

use prost::Message;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};
use tonic_prost::ProstCodec;

use messages::*;

/// How long one call may take; only what hangs comes near it.
const PATIENCE: Duration = Duration::from_secs(60);

/// A runtime's socket.
pub struct Cri {
    engine: tokio::runtime::Runtime,
    channel: Channel,
}

/// A pod that runs, or did.
#[derive(Debug, Clone)]
pub struct Sandbox {
    pub id: String,
    pub config: PodSandboxConfig,
}

impl Cri {
    pub fn at(socket: &Path) -> Self {
        let engine = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("an engine");
        let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display())).expect("a socket's address");
        let channel = engine.block_on(async { endpoint.timeout(PATIENCE).connect_lazy() });
        Self { engine, channel }
    }

    fn call<Q, A>(&self, method: &'static str, message: Q) -> Result<A, Status>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        self.engine.block_on(async {
            let mut client = Grpc::new(self.channel.clone());
            client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
            let path = PathAndQuery::from_static(method);
            let answer = client.unary(Request::new(message), path, ProstCodec::<Q, A>::default()).await?;
            Ok(answer.into_inner())
        })
    }

    pub fn status(&self) -> Result<StatusResponse, Status> {
        self.call("/runtime.v1.RuntimeService/Status", StatusRequest { verbose: true })
    }

    /// The condition `NetworkReady`: whether it holds, and why not.
    pub fn network_ready(&self) -> Result<(bool, String), Status> {
        let conditions = self.status()?.status.unwrap_or_default().conditions;
        let network = conditions.into_iter().find(|condition| condition.r#type == "NetworkReady");
        Ok(network.map(|condition| (condition.status, condition.message)).expect("a condition of the network"))
    }

    pub fn has_image(&self, name: &str) -> bool {
        let request = ImageStatusRequest { image: Some(ImageSpec { image: name.to_owned() }) };
        let answer: Result<ImageStatusResponse, _> = self.call("/runtime.v1.ImageService/ImageStatus", request);
        answer.is_ok_and(|answer| answer.image.is_some())
    }

    pub fn run(&self, config: PodSandboxConfig) -> Result<Sandbox, Status> {
        let request = RunPodSandboxRequest { config: Some(config.clone()) };
        let answer: RunPodSandboxResponse = self.call("/runtime.v1.RuntimeService/RunPodSandbox", request)?;
        Ok(Sandbox { id: answer.pod_sandbox_id, config })
    }

    pub fn sandboxes(&self) -> Vec<PodSandbox> {
        let answer: Result<ListPodSandboxResponse, _> =
            self.call("/runtime.v1.RuntimeService/ListPodSandbox", ListPodSandboxRequest {});
        answer.expect("the pods").items
    }

    pub fn sandbox(&self, id: &str) -> Result<PodSandboxStatus, Status> {
        let request = SandboxRequest { pod_sandbox_id: id.to_owned() };
        let answer: PodSandboxStatusResponse = self.call("/runtime.v1.RuntimeService/PodSandboxStatus", request)?;
        Ok(answer.status.unwrap_or_default())
    }

    /// The pod's addresses, the first one first.
    pub fn addresses(&self, id: &str) -> Vec<std::net::IpAddr> {
        let network = self.sandbox(id).expect("a pod").network.expect("its network");
        let more = network.additional_ips.into_iter().map(|more| more.ip);
        std::iter::once(network.ip).chain(more).map(|ip| ip.parse().expect("an address")).collect()
    }

    pub fn stop(&self, id: &str) -> Result<(), Status> {
        let request = SandboxRequest { pod_sandbox_id: id.to_owned() };
        self.call("/runtime.v1.RuntimeService/StopPodSandbox", request).map(|Nothing {}| ())
    }

    pub fn remove(&self, id: &str) -> Result<(), Status> {
        let request = SandboxRequest { pod_sandbox_id: id.to_owned() };
        self.call("/runtime.v1.RuntimeService/RemovePodSandbox", request).map(|Nothing {}| ())
    }

    /// Starts a container in a pod; gives its ID.
    pub fn start(&self, pod: &Sandbox, name: &str, image: &str, command: &[&str]) -> Result<String, Status> {
        let config = ContainerConfig {
            metadata: Some(ContainerMetadata { name: name.to_owned() }),
            image: Some(ImageSpec { image: image.to_owned() }),
            command: command.iter().map(|&word| word.to_owned()).collect(),
            linux: Some(LinuxContainerConfig { resources: Some(LinuxContainerResources {}) }),
        };
        let request = CreateContainerRequest {
            pod_sandbox_id: pod.id.clone(),
            config: Some(config),
            sandbox_config: Some(pod.config.clone()),
        };
        let made: ContainerRequest = self.call("/runtime.v1.RuntimeService/CreateContainer", request)?;
        let Nothing {} = self.call("/runtime.v1.RuntimeService/StartContainer", made.clone())?;
        Ok(made.container_id)
    }

    pub fn is_running(&self, container: &str) -> bool {
        let request = ContainerRequest { container_id: container.to_owned() };
        let answer: Result<ContainerStatusResponse, _> =
            self.call("/runtime.v1.RuntimeService/ContainerStatus", request);
        // CONTAINER_RUNNING
        answer.is_ok_and(|answer| answer.status.unwrap_or_default().state == 1)
    }

    /// Runs a command in a container; gives what it said, if it ended well.
    pub fn exec(&self, container: &str, command: &[&str]) -> Result<String, String> {
        let request = ExecSyncRequest {
            container_id: container.to_owned(),
            cmd: command.iter().map(|&word| word.to_owned()).collect(),
            timeout: 20,
        };
        let answer: ExecSyncResponse =
            self.call("/runtime.v1.RuntimeService/ExecSync", request).map_err(|status| status.to_string())?;
        let said = String::from_utf8_lossy(&answer.stdout).into_owned();
        if answer.exit_code == 0 {
            return Ok(said);
        }
        let complaint = String::from_utf8_lossy(&answer.stderr).into_owned();
        Err(format!("{command:?} ended with {}: {said}{complaint}", answer.exit_code))
    }
}
