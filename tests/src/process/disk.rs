//! A disk that can be filled: a small tmpfs.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use nix::sys::statvfs::statvfs;
use tempfile::TempDir;

/// A mounted tmpfs, gone when this is dropped. Drop what runs on it first.
pub struct Disk {
    folder: TempDir,
}

impl Disk {
    /// Mounts one of so many mebibytes.
    ///
    /// # Errors
    /// If that is not permitted here: skip the test.
    pub fn mount(mebibytes: u32) -> Result<Disk> {
        let folder = TempDir::with_prefix("duet-disk-")?;
        let mut command = Command::new("mount");
        command.args(["-t", "tmpfs", "-o", &format!("size={mebibytes}m"), "duet-test"]).arg(folder.path());
        let output = command.output().context("mount")?;
        ensure!(output.status.success(), "mount: {}", String::from_utf8_lossy(&output.stderr).trim());
        Ok(Disk { folder })
    }

    /// A folder on it.
    #[must_use]
    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// Free bytes.
    ///
    /// # Errors
    /// If it cannot be asked.
    pub fn free(&self) -> Result<u64> {
        let stat = statvfs(self.folder.path())?;
        Ok(stat.blocks_available() * stat.fragment_size())
    }

    /// Fills it until at most `leave` bytes are free.
    ///
    /// # Errors
    /// If it cannot be written for another reason than that it is full.
    pub fn fill(&self, leave: u64) -> Result<()> {
        let mut ballast = File::options().create(true).append(true).open(self.ballast())?;
        let block = vec![0_u8; 64 << 10];
        loop {
            let over = self.free()?.saturating_sub(leave).min(block.len() as u64) as usize;
            match ballast.write_all(&block[..over]) {
                Ok(()) if over == 0 => return Ok(()),
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::StorageFull => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Frees what [`Disk::fill`] took.
    ///
    /// # Errors
    /// If that cannot be removed.
    pub fn relieve(&self) -> Result<()> {
        Ok(fs::remove_file(self.ballast())?)
    }

    fn ballast(&self) -> PathBuf {
        self.folder.path().join("ballast")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        unmount(self.folder.path());
    }
}

fn unmount(path: &Path) {
    // Lazily: a process that has just been killed may hold it for another moment.
    let _ = Command::new("umount").arg("-l").arg(path).output();
}
