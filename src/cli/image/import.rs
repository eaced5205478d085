//! `gemel volume import`.

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;
use tonic::transport::Channel;

use super::changes::{Change, ChangeReader};
use super::progress::Progress;
use super::qcow2::{Image, ImageError, Part};
use super::{ImageFormat, local};
use crate::cli::args::{Sector, sector};
use crate::cli::commands::Output;
use crate::cli::error::CliError;
use crate::rpc::management::management_client::ManagementClient;
use crate::rpc::management::{CreateVolumeRequest, GetVolumeRequest, WriteVolumeRequest};
use crate::rpc::size::show as show_size;

/// `gemel volume import`
#[derive(Debug, Args)]
pub struct ImportArguments {
    /// The file; '-' is standard input, for a volume that is there.
    file: PathBuf,
    /// The volume. One that is not there is created, as large as what the file holds.
    volume: String,
    /// What the file is.
    #[arg(long, default_value = "raw")]
    format: ImageFormat,
    /// The file holds what changed after an older state, which the volume is at: made by `gemel volume export --since`.
    #[arg(long, requires = "confirm")]
    incremental: bool,
    /// The volume's name once more: overwrite it, although it is there.
    #[arg(long, value_name = "VOLUME")]
    confirm: Option<String>,
    /// Of a new volume: bytes in a sector, as for `gemel volume create`.
    #[arg(long, default_value = "512", value_parser = sector)]
    sector: Sector,
    /// Of a new volume: on the node that is asked alone.
    #[arg(long)]
    local: bool,
    /// Of a new volume: the node that serves it at first.
    #[arg(long, value_name = "NODE")]
    primary: Option<String>,
}

/// What an import did.
#[derive(Serialize)]
struct Imported {
    volume: String,
    file: String,
    format: &'static str,
    size_bytes: u64,
    data_bytes: u64,
}

/// Runs `gemel volume import`.
pub async fn import(
    client: &mut ManagementClient<Channel>,
    output: Output,
    arguments: ImportArguments,
) -> Result<(), CliError> {
    let source = Source::open(&arguments)?;
    let size_bytes = prepare(client, &arguments, source.size_bytes()).await?;
    let data_bytes = send(client, &arguments, source, size_bytes).await?;
    let done = Imported {
        volume: arguments.volume,
        file: arguments.file.display().to_string(),
        format: arguments.format.name(),
        size_bytes,
        data_bytes,
    };
    output.one(&done, |done| {
        format!("imported {} to {}: {} of data\n", done.file, done.volume, show_size(done.data_bytes))
    })
}

/// Sees to it that the volume is there and may be written. Its size.
async fn prepare(
    client: &mut ManagementClient<Channel>,
    arguments: &ImportArguments,
    wanted_bytes: Option<u64>,
) -> Result<u64, CliError> {
    let ImportArguments { volume, confirm, incremental, .. } = arguments;
    match client.get_volume(GetVolumeRequest { name: volume.clone() }).await {
        Ok(known) => {
            let size_bytes = known.into_inner().size_bytes;
            if confirm.as_ref() != Some(volume) {
                return Err(CliError::Usage(format!(
                    "volume {volume} is there already, and would be overwritten: say --confirm {volume}"
                )));
            }
            match wanted_bytes.filter(|wanted| *wanted > size_bytes) {
                Some(wanted) => Err(CliError::Usage(format!(
                    "the file holds {}, and volume {volume} has {}: resize it first (gemel volume resize {volume} --size \
                     {wanted})",
                    show_size(wanted),
                    show_size(size_bytes)
                ))),
                None => Ok(size_bytes),
            }
        }
        Err(status) if status.code() == Code::NotFound && !incremental => {
            let Some(size_bytes) = wanted_bytes.filter(|wanted| *wanted > 0) else {
                return Err(CliError::Usage(format!(
                    "what has no size can't become a new volume: create it first (gemel volume create {volume} --size …)"
                )));
            };
            let request = CreateVolumeRequest {
                name: volume.clone(),
                size_bytes,
                sector_bytes: arguments.sector.bytes,
                physical_sector_bytes: arguments.sector.physical_bytes,
                local: arguments.local,
                primary: arguments.primary.clone().unwrap_or_default(),
            };
            Ok(client.create_volume(request).await?.into_inner().size_bytes)
        }
        Err(status) => Err(status.into()),
    }
}

/// Sends what the source has. Bytes of data.
async fn send(
    client: &mut ManagementClient<Channel>,
    arguments: &ImportArguments,
    mut source: Source,
    size_bytes: u64,
) -> Result<u64, CliError> {
    let (sender, receiver) = mpsc::channel(PIECES_AHEAD);
    let first = WriteVolumeRequest {
        volume: arguments.volume.clone(),
        clear: !arguments.incremental,
        ..WriteVolumeRequest::default()
    };
    // A file is read by a thread of its own: nothing else waits for it.
    let reading = std::thread::spawn(move || {
        let mut put = |message| sender.blocking_send(message).map_err(|_| Ended::Unwanted);
        put(first)?;
        source.read(&mut put)
    });
    let mut progress = Progress::new("importing:", size_bytes);
    let (mut before, mut is_complete) = (0, false);
    let outcome = async {
        let mut answers = client.write_volume(ReceiverStream::new(receiver)).await?.into_inner();
        while let Some(answer) = answers.message().await? {
            is_complete = answer.through == size_bytes;
            progress.at(answer.through, answer.through.saturating_sub(before));
            before = answer.through;
        }
        Ok::<_, CliError>(())
    }
    .await;
    let read = reading
        .join()
        .unwrap_or_else(|_| Err(Ended::Failed(CliError::Local("reading has failed".to_owned()))));
    progress.done();
    match (outcome, read) {
        (_, Err(Ended::Failed(error))) => Err(error),
        (Err(error), _) => Err(error),
        (Ok(()), Ok(data_bytes)) if is_complete => Ok(data_bytes),
        (Ok(()), _) => Err(CliError::Unreachable(format!(
            "the node has not confirmed the end: volume {} holds a part of the file; import it again",
            arguments.volume
        ))),
    }
}

/// Why reading ended early.
enum Ended {
    /// Nobody takes any more: the node has said why.
    Unwanted,
    Failed(CliError),
}

impl From<ImageError> for Failure {
    fn from(error: ImageError) -> Self {
        Self::Image(error)
    }
}

/// Why the parts of an image end early.
enum Failure {
    Image(ImageError),
    Ended(Ended),
}

type Put<'a> = &'a mut dyn FnMut(WriteVolumeRequest) -> Result<(), Ended>;

/// Where an import comes from.
enum Source {
    Raw(Box<dyn Read + Send>, Option<u64>, PathBuf),
    /// A file whose holes are known.
    Sparse(File, u64, PathBuf),
    Image(Image, PathBuf),
    Changes(ChangeReader<BufReader<Box<dyn Read + Send>>>, PathBuf),
}

impl Source {
    fn open(arguments: &ImportArguments) -> Result<Self, CliError> {
        let path = &arguments.file;
        let is_stream = path == Path::new("-");
        let failed = local("read", path);
        let open = || File::open(path).map_err(&failed);
        match (arguments.format, arguments.incremental) {
            (ImageFormat::Qcow2, _) if is_stream => {
                Err(CliError::Usage("a qcow2 image is read from a file, not from standard input".to_owned()))
            }
            (ImageFormat::Qcow2, incremental) => {
                let no_image = |error: ImageError| CliError::Usage(format!("{}: {error}", path.display()));
                let image = Image::open(open()?).map_err(no_image)?;
                if image.has_backing() && !incremental {
                    return Err(CliError::Usage(format!(
                        "{} lies on top of another image: import that one first, then this one with --incremental; or make \
                         one of both with `qemu-img convert -O qcow2`",
                        path.display()
                    )));
                }
                Ok(Self::Image(image, path.clone()))
            }
            (ImageFormat::Raw, true) => {
                let input: Box<dyn Read + Send> =
                    if is_stream { Box::new(std::io::stdin()) } else { Box::new(open()?) };
                let reader = ChangeReader::new(BufReader::new(input)).map_err(&failed)?;
                Ok(Self::Changes(reader, path.clone()))
            }
            (ImageFormat::Raw, false) if is_stream => {
                Ok(Self::Raw(Box::new(std::io::stdin()), None, path.clone()))
            }
            (ImageFormat::Raw, false) => {
                let mut file = open()?;
                // The end of a block device too.
                let length = file
                    .seek(SeekFrom::End(0))
                    .and_then(|length| file.seek(SeekFrom::Start(0)).map(|_| length));
                Ok(Self::Sparse(file, length.map_err(&failed)?, path.clone()))
            }
        }
    }

    /// Bytes of the volume, whole blocks; none when that is not known before the end.
    fn size_bytes(&self) -> Option<u64> {
        let size_bytes = match self {
            Self::Raw(_, length, _) => *length,
            Self::Sparse(_, length, _) => Some(*length),
            Self::Image(image, _) => Some(image.size_bytes()),
            Self::Changes(reader, _) => Some(reader.size_bytes()),
        };
        size_bytes.map(|size| size.next_multiple_of(BLOCK_BYTES))
    }

    /// Gives everything to `put`. Bytes of data.
    fn read(&mut self, put: Put<'_>) -> Result<u64, Ended> {
        match self {
            Self::Raw(input, _, path) => {
                let (mut offset, mut sent) = (0, 0);
                loop {
                    let data = read_piece(input, PIECE_BYTES)
                        .map_err(|error| Ended::Failed(local("read", path)(error)))?;
                    if data.is_empty() {
                        return Ok(sent);
                    }
                    let length = data.len() as u64;
                    sent += put_data(offset, data, put)?;
                    offset += length;
                }
            }
            Self::Sparse(file, length, path) => {
                read_sparse(file, *length, put, &|error| Ended::Failed(local("read", path)(error)))
            }
            Self::Image(image, path) => read_image(image, put).map_err(|failure| match failure {
                Failure::Image(error) => {
                    Ended::Failed(CliError::Local(format!("{}: {error}", path.display())))
                }
                Failure::Ended(ended) => ended,
            }),
            Self::Changes(reader, path) => {
                let mut sent = 0;
                loop {
                    match reader.next().map_err(|error| Ended::Failed(local("read", path)(error)))? {
                        None => return Ok(sent),
                        Some(Change::Data(offset, data)) => sent += put_data(offset, data, put)?,
                        Some(Change::Zeros(offset, zeros)) => put_zeros(offset, zeros, put)?,
                    }
                }
            }
        }
    }
}

fn read_sparse(
    file: &File,
    length: u64,
    put: Put<'_>,
    failed: &dyn Fn(std::io::Error) -> Ended,
) -> Result<u64, Ended> {
    let (mut offset, mut sent) = (0, 0);
    while offset < length {
        // Where holes are not known, everything is data.
        let data = match rustix::fs::seek(file, rustix::fs::SeekFrom::Data(offset)) {
            Ok(data) => data / BLOCK_BYTES * BLOCK_BYTES,
            Err(rustix::io::Errno::NXIO) => return Ok(sent),
            Err(_) => offset,
        };
        offset = data.max(offset);
        let hole = rustix::fs::seek(file, rustix::fs::SeekFrom::Hole(offset)).unwrap_or(length);
        let end = hole.max(offset + 1).next_multiple_of(BLOCK_BYTES).min(length);
        while offset < end {
            let mut data = vec![0; (end - offset).min(PIECE_BYTES) as usize];
            std::os::unix::fs::FileExt::read_exact_at(file, &mut data, offset).map_err(failed)?;
            let read = data.len() as u64;
            sent += put_data(offset, data, put)?;
            offset += read;
        }
    }
    Ok(sent)
}

fn read_image(image: &Image, put: Put<'_>) -> Result<u64, Failure> {
    let (mut sent, mut buffer, mut begin) = (0, Vec::new(), 0);
    // Neighbours go together: a cluster may be as small as 512 bytes, and blocks are written whole.
    let mut flush = |buffer: &mut Vec<u8>, begin: u64, put: Put<'_>| {
        if buffer.is_empty() {
            return Ok(());
        }
        sent += put_data(begin, std::mem::take(buffer), put).map_err(Failure::Ended)?;
        Ok::<_, Failure>(())
    };
    image.parts(|offset, part| {
        let (Part::Data { length, .. } | Part::Zeros { length }) = part;
        let is_next = offset == begin + buffer.len() as u64;
        let is_full = buffer.len() as u64 + length > PIECE_BYTES
            && (begin + buffer.len() as u64).is_multiple_of(BLOCK_BYTES);
        if !is_next || is_full {
            if !(buffer.len() as u64).is_multiple_of(BLOCK_BYTES) || !offset.is_multiple_of(BLOCK_BYTES) {
                return Err(
                    ImageError::Unknown("has clusters of less than 4 KiB, with gaps between them").into()
                );
            }
            flush(&mut buffer, begin, put)?;
            begin = offset;
        }
        match part {
            Part::Zeros { length } if buffer.is_empty() && length.is_multiple_of(BLOCK_BYTES) => {
                put_zeros(offset, length, put).map_err(Failure::Ended)?;
                begin = offset + length;
            }
            Part::Zeros { length } => buffer.resize(buffer.len() + length as usize, 0),
            Part::Data { at, length } => {
                let start = buffer.len();
                buffer.resize(start + length as usize, 0);
                image.read(at, &mut buffer[start..])?;
            }
        }
        // A large cluster is more than a piece.
        while buffer.len() as u64 > PIECE_BYTES {
            let rest = buffer.split_off(PIECE_BYTES as usize);
            flush(&mut buffer, begin, put)?;
            (buffer, begin) = (rest, begin + PIECE_BYTES);
        }
        Ok::<_, Failure>(())
    })?;
    flush(&mut buffer, begin, put)?;
    Ok(sent)
}

/// As many bytes as there are, up to `most`.
fn read_piece(input: &mut dyn Read, most: u64) -> std::io::Result<Vec<u8>> {
    let mut data = Vec::with_capacity(most as usize);
    input.take(most).read_to_end(&mut data)?;
    Ok(data)
}

/// Only the end of a volume is no whole block.
fn put_data(offset: u64, mut data: Vec<u8>, put: Put<'_>) -> Result<u64, Ended> {
    data.resize(data.len().next_multiple_of(BLOCK_BYTES as usize), 0);
    let length = data.len() as u64;
    put(WriteVolumeRequest { offset, data, ..WriteVolumeRequest::default() })?;
    Ok(length)
}

fn put_zeros(offset: u64, zeros: u64, put: Put<'_>) -> Result<(), Ended> {
    let zeros = zeros.next_multiple_of(BLOCK_BYTES);
    put(WriteVolumeRequest { offset, zeros, ..WriteVolumeRequest::default() })
}

const BLOCK_BYTES: u64 = 4096;
const PIECE_BYTES: u64 = 1 << 20;
const PIECES_AHEAD: usize = 4;
