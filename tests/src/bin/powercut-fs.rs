//! Mounts a copy of a directory as a disk that can lose power, for trying a crash by hand.
//!
//! The usage below says how the power is cut and where what survives is written.

use axiomfs_tests::powercut::{Disk, Loss, ROOT, Switch};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

const USAGE: &str = "\
usage: powercut-fs DIRECTORY MOUNTPOINT IMAGE [--seed N] [--loss LOSS] [--cut-at OPERATION]

Serves a copy of DIRECTORY (in memory) at MOUNTPOINT until the power fails: when a file named .fault-ANYTHING is
created there, at the given changing operation, or at `umount`. Then it writes what survived into the new directory
IMAGE, and answers EIO until it is unmounted.
LOSS is what a cut does to what was not synced: everything | nothing | tail | subset | torn (the default).";

struct Arguments {
    directory: PathBuf,
    mountpoint: PathBuf,
    image: PathBuf,
    seed: u64,
    loss: Loss,
    cut_at: Option<u64>,
}

fn parse(arguments: impl Iterator<Item = String>) -> Result<Arguments, String> {
    let mut paths = Vec::new();
    let (mut seed, mut loss, mut cut_at) = (1, Loss::Torn, None);
    let mut arguments = arguments;
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or(format!("{argument} needs a value"));
        match argument.as_str() {
            "--seed" => seed = value()?.parse().map_err(|error| format!("--seed: {error}"))?,
            "--cut-at" => cut_at = Some(value()?.parse().map_err(|error| format!("--cut-at: {error}"))?),
            "--loss" => {
                let wanted = value()?;
                let known = |loss: &Loss| format!("{loss:?}").to_lowercase() == wanted;
                loss = Loss::ALL.into_iter().find(known).ok_or(format!("--loss: {wanted} is none"))?;
            }
            _ if argument.starts_with('-') => return Err(format!("{argument} is no option")),
            _ => paths.push(PathBuf::from(argument)),
        }
    }
    let [directory, mountpoint, image] =
        <[PathBuf; 3]>::try_from(paths).map_err(|paths| format!("3 paths are needed and not {}", paths.len()))?;
    Ok(Arguments { directory, mountpoint, image, seed, loss, cut_at })
}

fn serve(arguments: &Arguments) -> std::io::Result<()> {
    let switch = Switch::new(Disk::import(&arguments.directory)?);
    if let Some(operation) = arguments.cut_at {
        switch.cut_at(operation);
    }
    let session = switch.mount(&arguments.mountpoint)?;
    eprintln!("Serving {} at {}", arguments.directory.display(), arguments.mountpoint.display());
    while !session.guard.is_finished() && switch.wait(Duration::from_millis(100)).is_none() {}
    switch.cut("unmount");
    let disk = switch.disk();
    disk.after_cut(arguments.seed, arguments.loss).export(ROOT, &arguments.image)?;
    eprintln!(
        "The power failed: {}. {} operations, {} changes not synced; what survived is in {}",
        switch.cause().unwrap_or_default(),
        switch.operations(),
        disk.unsynced(),
        arguments.image.display()
    );
    session.join()
}

fn main() -> ExitCode {
    let arguments = match parse(std::env::args().skip(1)) {
        Ok(arguments) => arguments,
        Err(error) => {
            eprintln!("powercut-fs: {error}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    match serve(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("powercut-fs: {error}");
            ExitCode::FAILURE
        }
    }
}
