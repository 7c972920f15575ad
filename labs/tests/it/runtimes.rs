//! Real runtimes call the plugin: containerd, podman, cnitool and a caller of libcni.

mod containerd;
mod cri;
mod go;
mod image;
mod libcni;
mod node;
mod podman;
mod pods;
