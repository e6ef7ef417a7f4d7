//! `larvatus seal`: a model that only attested services will read.

use std::fs::{self, File, OpenOptions};
use std::io::{BufWriter, ErrorKind, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use larvatus_attest::seal::{self, OwnerKey};
use zeroize::Zeroizing;

use crate::Verdict;

#[derive(clap::Args, Debug)]
pub(crate) struct Seal {
    /// The model, an ONNX file.
    pub(crate) model: PathBuf,
    /// The owner's key: whoever has it opens all models sealed with it. Made, readable by its owner
    /// only, where there is none.
    #[arg(long, value_name = "FILE")]
    pub(crate) owner_key: PathBuf,
    /// Where the sealed model goes; MODEL.sealed where nothing is said.
    #[arg(long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
}

pub(crate) fn run(args: &Seal) -> Result<Verdict> {
    let owner = own_key(&args.owner_key)?;
    let output = args.output.clone().unwrap_or_else(|| {
        let mut name = args.model.clone().into_os_string();
        name.push(".sealed");
        name.into()
    });
    let mut from = File::open(&args.model)
        .with_context(|| format!("cannot read model {}", args.model.display()))?;
    let length = from.metadata()?.len();
    let mut to = OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&output)
        .with_context(|| format!("cannot make {}", output.display()))?;
    let sealed = sealed(&mut from, length, &mut to, &owner);
    if sealed.is_err() {
        // Half a sealed model is of no use to anybody.
        let _ = fs::remove_file(&output);
    }
    let model = sealed.with_context(|| format!("cannot seal {}", args.model.display()))?;
    println!("sealed model  {}", output.display());
    println!("model id      {model}");
    println!("owner's key   {}", args.owner_key.display());
    Ok(Verdict::Accepted)
}

fn sealed(
    from: &mut File,
    length: u64,
    to: &mut File,
    owner: &OwnerKey,
) -> Result<larvatus_attest::statement::ModelId> {
    let style = ProgressStyle::with_template("sealing {bar:40} {bytes}/{total_bytes}")?;
    let bar = ProgressBar::new(length).with_style(style);
    let mut buffered = BufWriter::new(&mut *to);
    let model = seal::seal(from, length, &mut buffered, owner, |done| {
        bar.set_position(done);
    })?;
    buffered.flush()?;
    drop(buffered);
    to.sync_all()?;
    bar.finish_and_clear();
    Ok(model)
}

/// Reads the owner's key, or makes one.
fn own_key(path: &Path) -> Result<OwnerKey> {
    match File::open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let key = OwnerKey::fresh()?;
            let file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(path);
            let written = file.and_then(|mut file| {
                file.write_all(key.to_text().as_bytes())?;
                file.sync_all()
            });
            written.with_context(|| format!("cannot make the key file {}", path.display()))?;
            eprintln!("made a new owner's key: {}", path.display());
            Ok(key)
        }
        _ => read_key(path),
    }
}

/// Reads the owner's key.
pub(super) fn read_key(path: &Path) -> Result<OwnerKey> {
    let what = || format!("key file {}", path.display());
    let mut file = File::open(path).with_context(what)?;
    let mode = file.metadata().with_context(what)?.permissions().mode() & 0o777;
    ensure!(
        mode & 0o077 == 0,
        "key file {} is open to others (mode {mode:o}); chmod 600 it",
        path.display()
    );
    let mut text = Zeroizing::new(String::new());
    let limited = Read::by_ref(&mut file).take(256).read_to_string(&mut text);
    limited.with_context(what)?;
    OwnerKey::from_text(&text).with_context(what)
}
