//! One of several processes in the same directories; told what to do line by line by the test that started it.

use std::io::BufRead;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use axiomfs_tests::crowd::Member;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, root, id, seed] = &arguments[..] else {
        eprintln!("usage: crowd-member DIRECTORY NUMBER SEED");
        return ExitCode::from(2);
    };
    match obey(Path::new(root), id, seed) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            println!("wrong {}", message.replace('\n', " / "));
            ExitCode::FAILURE
        }
    }
}

/// `work SECONDS`, `check` and `reopen`, until the input ends.
fn obey(root: &Path, id: &str, seed: &str) -> Result<(), String> {
    let number = |text: &str| text.parse().map_err(|e| format!("{text}: {e}"));
    let mut member = Member::new(root, number(id)?, number(seed)?).map_err(|e| e.to_string())?;
    for line in std::io::stdin().lock().lines() {
        let line = line.map_err(|e| e.to_string())?;
        match line.split_once(' ') {
            Some(("work", seconds)) => {
                let t = member.work(Duration::from_secs(number(seconds)?))?;
                println!("done {} {} {} {}", t.operations, t.appended, t.counted, t.read);
            }
            None if line == "check" => {
                member.check()?;
                println!("done");
            }
            None if line == "reopen" => {
                member.reopen()?;
                println!("done");
            }
            _ => return Err(format!("unknown: {line}")),
        }
    }
    Ok(())
}
