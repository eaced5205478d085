//! `gemel volume export` and `gemel snapshot diff`.

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;
use tonic::transport::Channel;

use super::changes::ChangeWriter;
use super::pieces::Pieces;
use super::progress::Progress;
use super::qcow2::{CLUSTER_BYTES, Clusters, Layout};
use super::{DiffArguments, ImageFormat, Temporary, local};
use crate::cli::commands::Output;
use crate::cli::error::CliError;
use crate::rpc::management::management_client::ManagementClient;
use crate::rpc::management::{GetVolumeRequest, ReadVolumeRequest, VolumePiece};
use crate::rpc::size::show as show_size;

/// `gemel volume export`
#[derive(Debug, Args)]
pub struct ExportArguments {
    /// The volume, as it was at a snapshot; without one it is exported as it is now, by a snapshot for that time.
    #[arg(value_name = "VOLUME[@SNAPSHOT]")]
    source: String,
    /// The file; '-' is standard output.
    file: PathBuf,
    /// What it becomes.
    #[arg(long, default_value = "raw")]
    format: ImageFormat,
    /// Only what changed after this older snapshot of the volume: as qcow2 an image on top of another one, as raw a
    /// stream for `gemel volume import --incremental`.
    #[arg(long, value_name = "SNAPSHOT")]
    since: Option<String>,
    /// The file name of the image below, which holds that older snapshot; VOLUME@SNAPSHOT.qcow2 when not given.
    #[arg(long, value_name = "FILE", requires = "since")]
    backing: Option<String>,
    /// The image below is raw, and not qcow2.
    #[arg(long, requires = "backing")]
    backing_raw: bool,
    /// Replace a file that is there.
    #[arg(long)]
    force: bool,
}

/// What an export made.
#[derive(Serialize)]
struct Exported {
    volume: String,
    snapshot: String,
    since: Option<String>,
    file: String,
    format: &'static str,
    size_bytes: u64,
    data_bytes: u64,
}

/// Runs `gemel volume export`.
pub async fn export(
    client: &mut ManagementClient<Channel>,
    output: Output,
    arguments: ExportArguments,
) -> Result<(), CliError> {
    let (volume, snapshot) = match arguments.source.split_once('@') {
        Some((volume, name)) if !name.is_empty() => (volume.to_owned(), Some(name.to_owned())),
        Some(_) => return Err(CliError::Usage("a snapshot is named VOLUME@NAME".to_owned())),
        None => (arguments.source.clone(), None),
    };
    let size_bytes =
        client.get_volume(GetVolumeRequest { name: volume.clone() }).await?.into_inner().size_bytes;
    let sink = Sink::open(&arguments)?;
    let (temporary, snapshot) = match snapshot {
        Some(snapshot) => (None, snapshot),
        None => {
            let temporary = Temporary::take(client, &volume, "export").await?;
            let name = temporary.name.clone();
            (Some(temporary), name)
        }
    };
    let source = Source { client: client.clone(), volume, snapshot, size_bytes };
    let exported = source.write(sink, &arguments).await;
    if exported.is_err() && arguments.file != Path::new("-") {
        // Half an image must not pass for one.
        let _ = std::fs::remove_file(&arguments.file);
    }
    let dropped = match temporary {
        Some(temporary) => temporary.drop(client).await,
        None => Ok(()),
    };
    let data_bytes = exported?;
    dropped?;
    if arguments.file == Path::new("-") {
        return Ok(());
    }
    let Source { volume, snapshot, size_bytes, .. } = source;
    let made = Exported {
        volume,
        snapshot,
        since: arguments.since,
        file: arguments.file.display().to_string(),
        format: arguments.format.name(),
        size_bytes,
        data_bytes,
    };
    output.one(&made, |made| {
        format!(
            "exported {}@{} to {}: {} of data\n",
            made.volume,
            made.snapshot,
            made.file,
            show_size(made.data_bytes)
        )
    })
}

/// Runs `gemel snapshot diff`.
pub async fn diff(
    client: &mut ManagementClient<Channel>,
    output: Output,
    DiffArguments { older, newer }: DiffArguments,
) -> Result<(), CliError> {
    if newer.as_ref().is_some_and(|newer| newer.volume != older.volume) {
        return Err(CliError::Usage("both snapshots are to be of one volume".to_owned()));
    }
    let request = ReadVolumeRequest {
        volume: older.volume,
        snapshot: newer.map(|newer| newer.name).unwrap_or_default(),
        since: older.name,
        ranges_only: true,
        ..ReadVolumeRequest::default()
    };
    let mut pieces = Pieces::new(client, request);
    while let Some(piece) = pieces.next().await? {
        output.one(&piece, |piece| {
            let kind = if piece.mapped { "data" } else { "zeros" };
            format!("{:>16} {:>14} {kind}\n", piece.offset, piece.length)
        })?;
    }
    Ok(())
}

/// What is exported.
struct Source {
    client: ManagementClient<Channel>,
    volume: String,
    snapshot: String,
    size_bytes: u64,
}

impl Source {
    /// Bytes of data that were written.
    async fn write(&self, sink: Sink, arguments: &ExportArguments) -> Result<u64, CliError> {
        match (arguments.format, &arguments.since) {
            (ImageFormat::Raw, None) => self.write_raw(sink).await,
            (ImageFormat::Raw, Some(since)) => self.write_changes(sink, since).await,
            (ImageFormat::Qcow2, since) => {
                let since = since.as_deref().unwrap_or_default();
                let backing = (!since.is_empty()).then(|| self.backing(since, arguments));
                self.write_qcow2(sink, since, backing).await
            }
        }
    }

    async fn write_raw(&self, mut sink: Sink) -> Result<u64, CliError> {
        let mut progress = Progress::new("exporting:", self.size_bytes);
        let mut pieces = self.pieces("", 4096, false);
        while let Some(piece) = pieces.next().await? {
            sink.put_at(piece.offset, &piece.data)?;
            progress.at(piece.offset, piece.length);
        }
        sink.end_at(self.size_bytes)?;
        Ok(progress.done())
    }

    async fn write_changes(&self, sink: Sink, since: &str) -> Result<u64, CliError> {
        let failed = |error| sink.failed(error);
        let mut progress = Progress::new("exporting:", self.size_bytes);
        let mut writer =
            ChangeWriter::new(BufWriter::new(sink.writer()?), self.size_bytes).map_err(failed)?;
        let mut pieces = self.pieces(since, 4096, false);
        while let Some(VolumePiece { offset, length, mapped, data }) = pieces.next().await? {
            let written = if mapped { writer.data(offset, &data) } else { writer.zeros(offset, length) };
            written.map_err(failed)?;
            progress.at(offset, data.len() as u64);
        }
        writer.finish().map_err(failed)?;
        sink.sync()?;
        Ok(progress.done())
    }

    async fn write_qcow2(
        &self,
        sink: Sink,
        since: &str,
        backing: Option<(String, &'static str)>,
    ) -> Result<u64, CliError> {
        let failed = |error| sink.failed(error);
        let (mut mapped, mut zeros) = (Clusters::none(self.size_bytes), Clusters::none(self.size_bytes));
        let mut ranges = self.pieces(since, CLUSTER_BYTES, true);
        while let Some(piece) = ranges.next().await? {
            let set = if piece.mapped { &mut mapped } else { &mut zeros };
            set.add(piece.offset, piece.length);
        }
        let layout = Layout::new(self.size_bytes, mapped, zeros, backing);
        let mut writer = BufWriter::with_capacity(1 << 20, sink.writer()?);
        layout.write_tables(&mut writer).map_err(failed)?;
        let mut progress = Progress::new("exporting:", self.size_bytes);
        let mut pieces = self.pieces(since, CLUSTER_BYTES, false);
        // The cluster whose data comes next.
        let mut next = layout.mapped().next(0);
        while let Some(piece) = pieces.next().await? {
            if !piece.mapped {
                continue;
            }
            for (cluster, data) in
                (piece.offset / CLUSTER_BYTES..).zip(piece.data.chunks(CLUSTER_BYTES as usize))
            {
                // A hole that the node does not remember as a change any more: its cluster is as it is.
                while let Some(missing) = next.filter(|next| *next < cluster) {
                    writer.write_all(&self.cluster(missing).await?).map_err(failed)?;
                    next = layout.mapped().next(missing + 1);
                }
                if next != Some(cluster) {
                    return Err(CliError::Local(format!(
                        "what {}@{} holds has changed while it was exported: try again",
                        self.volume, self.snapshot
                    )));
                }
                writer.write_all(data).map_err(failed)?;
                writer.write_all(&vec![0; CLUSTER_BYTES as usize - data.len()]).map_err(failed)?;
                next = layout.mapped().next(cluster + 1);
            }
            progress.at(piece.offset, piece.length);
        }
        while let Some(missing) = next {
            writer.write_all(&self.cluster(missing).await?).map_err(failed)?;
            next = layout.mapped().next(missing + 1);
        }
        writer.flush().map_err(failed)?;
        drop(writer);
        sink.sync()?;
        Ok(progress.done())
    }

    /// One cluster, as it is at the snapshot.
    async fn cluster(&self, cluster: u64) -> Result<Vec<u8>, CliError> {
        let mut request = self.request("", CLUSTER_BYTES, false);
        (request.from, request.end) = (cluster * CLUSTER_BYTES, (cluster + 1) * CLUSTER_BYTES);
        let mut data =
            Pieces::new(&self.client, request).next().await?.map(|piece| piece.data).unwrap_or_default();
        data.resize(CLUSTER_BYTES as usize, 0);
        Ok(data)
    }

    fn pieces(&self, since: &str, granularity: u64, ranges_only: bool) -> Pieces {
        Pieces::new(&self.client, self.request(since, granularity, ranges_only))
    }

    fn request(&self, since: &str, granularity: u64, ranges_only: bool) -> ReadVolumeRequest {
        ReadVolumeRequest {
            volume: self.volume.clone(),
            snapshot: self.snapshot.clone(),
            since: since.to_owned(),
            from: 0,
            end: 0,
            granularity: granularity as u32,
            ranges_only,
        }
    }

    /// Name and format of the image below. A name with a colon would be taken for a protocol.
    fn backing(&self, since: &str, arguments: &ExportArguments) -> (String, &'static str) {
        let name = arguments.backing.clone().unwrap_or_else(|| format!("{}@{since}.qcow2", self.volume));
        let name = if name.contains(':') && !name.contains('/') { format!("./{name}") } else { name };
        (name, if arguments.backing_raw { "raw" } else { "qcow2" })
    }
}

/// Where an export goes.
struct Sink {
    path: PathBuf,
    /// None for standard output.
    file: Option<File>,
    /// What standard output has got of a raw image.
    written: u64,
}

impl Sink {
    fn open(arguments: &ExportArguments) -> Result<Self, CliError> {
        let path = arguments.file.clone();
        if arguments.backing.as_ref().is_some_and(|name| name.is_empty() || name.len() > LONGEST_NAME) {
            return Err(CliError::Usage(format!(
                "the name of the image below has 1 to {LONGEST_NAME} bytes"
            )));
        }
        if path == Path::new("-") {
            return Ok(Self { path, file: None, written: 0 });
        }
        let mut options = OpenOptions::new();
        options.write(true).create(true);
        let opened = match arguments.force {
            true => options.truncate(true).open(&path),
            false => options.create_new(true).open(&path),
        };
        let file = opened.map_err(|error| match error.kind() {
            std::io::ErrorKind::AlreadyExists => CliError::Usage(format!(
                "{} is there already: name another file, or replace it with --force",
                path.display()
            )),
            _ => local("create", &path)(error),
        })?;
        Ok(Self { path, file: Some(file), written: 0 })
    }

    fn writer(&self) -> Result<Box<dyn Write>, CliError> {
        Ok(match &self.file {
            Some(file) => Box::new(file.try_clone().map_err(|error| self.failed(error))?),
            None => Box::new(std::io::stdout()),
        })
    }

    /// Data of a raw image.
    fn put_at(&mut self, offset: u64, data: &[u8]) -> Result<(), CliError> {
        let put = match &self.file {
            Some(file) => file.write_all_at(data, offset),
            None => {
                self.fill_to(offset)?;
                self.written = offset + data.len() as u64;
                std::io::stdout().lock().write_all(data)
            }
        };
        put.map_err(|error| self.failed(error))
    }

    /// The end of a raw image.
    fn end_at(&mut self, size_bytes: u64) -> Result<(), CliError> {
        match &self.file {
            Some(file) => file.set_len(size_bytes).map_err(|error| self.failed(error))?,
            None => self.fill_to(size_bytes)?,
        }
        self.sync()
    }

    fn fill_to(&mut self, offset: u64) -> Result<(), CliError> {
        let zeros = vec![0; 1 << 16];
        while self.written < offset {
            let part = (offset - self.written).min(zeros.len() as u64);
            std::io::stdout().lock().write_all(&zeros[..part as usize]).map_err(CliError::Output)?;
            self.written += part;
        }
        Ok(())
    }

    fn sync(&self) -> Result<(), CliError> {
        let synced = match &self.file {
            Some(file) => file.sync_all(),
            None => std::io::stdout().flush(),
        };
        synced.map_err(|error| self.failed(error))
    }

    fn failed(&self, error: std::io::Error) -> CliError {
        match &self.file {
            Some(_) => local("write", &self.path)(error),
            None => CliError::Output(error),
        }
    }
}

/// As the format has it.
const LONGEST_NAME: usize = 1023;
