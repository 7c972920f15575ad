//! Parts of an attachment that a plugin behind others makes and takes away: whoever made the link, they are written down with it.

use std::path::Path;

use loden_core::model::{Attach, Attachment, AttachmentKey, Part};
use loden_core::pod_tables::PORTS;

use super::{Ledger, ReserveError};
use crate::error::LinuxError;
use crate::netns::NetNs;
use crate::{fault, pod, pod_tables, shape, tuning};

impl Ledger {
    /// Gives a pod that is attached already a part of what `wanted` says of it. Where this plugin has not made its link, `wanted` is
    /// also what is written down of the rest.
    ///
    /// # Errors
    /// [`ReserveError`]; nothing has changed then.
    pub fn amend(&self, wanted: &Attachment, part: Part) -> Result<(), ReserveError> {
        let (_under_way, _lock, before) = self.begin(&wanted.key)?;
        let mut wanted = wanted.clone();
        if part == Part::Tuning {
            let ifname = wanted.key.ifname;
            wanted.tuning = in_pod(&wanted, |wanted| tuning::with_former(&wanted.tuning, ifname))?;
        }
        let mut attachment = before.as_ref().unwrap_or(&wanted).with_part(part, &wanted);
        if attachment.bandwidth.ingress.is_some() && attachment.host_side.is_none() {
            return Err(ReserveError::NoHostSide(wanted.key));
        }
        // What a former call opened.
        before.as_ref().filter(|_| part == Part::Ports).map_or(Ok(()), |there| pod_tables::remove(&[PORTS], there))?;
        // Written down first: what a killed one made is found then, and taken away.
        attachment.complete = false;
        self.run_dir.put_attachment(&attachment)?;
        fault::point("add-part-asked");
        if let Err(error) = self.make_part(&attachment, part) {
            // One that is refused a port has none to close.
            let taken = if part == Part::Ports { Ok(()) } else { take_out(&wanted, part) };
            let written = match &before {
                Some(before) => self.run_dir.put_attachment(before),
                None => self.run_dir.remove_attachment(&attachment.key),
            };
            let second = [taken, written].into_iter().filter_map(Result::err);
            return Err(match error {
                ReserveError::Files(first) => {
                    LinuxError::Several(std::iter::once(first).chain(second).collect()).into()
                }
                other => other,
            });
        }
        fault::point("add-part-made");
        attachment.complete = true;
        Ok(self.run_dir.put_attachment(&attachment)?)
    }

    fn make_part(&self, attachment: &Attachment, part: Part) -> Result<(), ReserveError> {
        match part {
            Part::Addresses => Ok(()),
            Part::Ports => {
                self.open(&[PORTS], attachment)?;
                Ok(pod::set_host_sysctls(attachment)?)
            }
            Part::Bandwidth => Ok(shape::apply(attachment)?),
            Part::Tuning => {
                let ifname = attachment.key.ifname;
                Ok(in_pod(attachment, |attachment| tuning::apply(&attachment.tuning, ifname))?)
            }
        }
    }

    /// What the kernel lacks of a part of an attachment: one line each.
    ///
    /// # Errors
    /// [`LinuxError`].
    pub fn missing(&self, key: &AttachmentKey, part: Part) -> Result<Vec<String>, LinuxError> {
        let Some(there) = self.run_dir.attachment(key)? else { return Ok(Vec::new()) };
        match part {
            Part::Addresses => Ok(Vec::new()),
            Part::Ports => pod_tables::missing(&there),
            Part::Bandwidth | Part::Tuning => pod::check_part(&there, part),
        }
    }

    /// Takes one part of an attachment away, and the whole if nothing else is left of it; a missing one is no error.
    ///
    /// # Errors
    /// [`LinuxError`].
    pub fn release_part(&self, key: &AttachmentKey, part: Part) -> Result<(), LinuxError> {
        if !self.run_dir.attachment_file(key)?.exists() {
            return Ok(());
        }
        let _lock = self.lock()?;
        // What cannot be read is left to who takes the whole away, or to the sweep.
        let Some(there) = self.readable(key)? else { return Ok(()) };
        // Those of a link of our own go with it.
        if part == Part::Addresses && !matches!(there.attach, Attach::Foreign { .. }) {
            return Ok(());
        }
        take_out(&there, part)?;
        fault::point("del-part-taken");
        let rest = there.without(part);
        if rest.is_empty() { self.free(&there) } else { self.run_dir.put_attachment(&rest) }
    }
}

/// Takes a part out of the kernel.
fn take_out(attachment: &Attachment, part: Part) -> Result<(), LinuxError> {
    match part {
        Part::Addresses => Ok(()),
        Part::Ports => pod_tables::remove(&[PORTS], attachment),
        Part::Bandwidth => shape::remove(attachment),
        Part::Tuning => pod::restore(attachment),
    }
}

fn in_pod<T>(
    attachment: &Attachment,
    work: impl FnOnce(&Attachment) -> Result<T, LinuxError>,
) -> Result<T, LinuxError> {
    NetNs::open(Path::new(&attachment.netns))?.visit(|| work(attachment))?
}
