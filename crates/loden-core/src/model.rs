//! The one model: pools, blocks, nodes, attachments, and the small types that cannot hold an illegal value.
//!
//! A dialect (flannel's keys, Calico's objects) is translated into these types at the edge and nowhere else.

mod attachment;
mod bandwidth;
mod mac;
mod name;
mod node;
mod pool;
mod port;
mod prefix;
mod record;
mod tuning;
mod vni;

pub use attachment::{
    Attach, Attachment, AttachmentKey, BridgePort, Delegate, KeyError, Macvlan, MacvlanMode, OwnBridge, Part,
    PodAddress, PodRoute, PortVlans, RouteExtras, SourceChange,
};
pub use bandwidth::{Bandwidth, Shape};
pub use mac::Mac;
pub(crate) use mac::{Fnv, digits};
pub use name::{IfName, NameError, NodeName, NodeUid, PLAIN_NAME, PoolName, is_plain_name};
pub use node::{Node, PerFamily, Receive};
pub use pool::{BackendConfig, Block, Control, HostGwConfig, IpipConfig, Pool, UdpConfig, VxlanConfig};
pub use port::{PortMapping, Transport, TransportError};
pub use prefix::{Family, Prefix, PrefixError, overlapping};
pub use record::{Entry, Key, Kind, Lease, Record};
pub use tuning::{Setting, Sysctl, Tuning};
pub use vni::{Vni, VniError};
