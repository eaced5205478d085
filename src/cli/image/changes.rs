//! What changed between two snapshots, as a stream that can go through a pipe and be put on a volume which has the
//! older one's contents.
//!
//! Format 1, little-endian: the 8 bytes `gemelchg`; format, and zero, as u32; the size of the volume in bytes as u64. Then
//! records in ascending order: offset in bytes as u64; length in bytes as u32, a multiple of 4096 but at the end, 1 MiB at
//! most when there is data; and as u32 zero for a range that reads as zeros, or one for data, which follows. A range of
//! zeros that is longer has several records. At the end a record with the offset 2^64 - 1, whose length is the CRC-32 of
//! everything before it. So a stream that was cut short, or damaged, shows.

use std::io::{self, Read, Write};

/// Makes a stream.
pub struct ChangeWriter<W> {
    output: W,
    checksum: crc32fast::Hasher,
}

impl<W: Write> ChangeWriter<W> {
    /// Begins one for a volume of this size.
    ///
    /// # Errors
    /// Those of the output.
    pub fn new(output: W, size_bytes: u64) -> io::Result<Self> {
        let mut writer = Self { output, checksum: crc32fast::Hasher::new() };
        writer.put(MAGIC)?;
        writer.put(&FORMAT.to_le_bytes())?;
        writer.put(&0u32.to_le_bytes())?;
        writer.put(&size_bytes.to_le_bytes())?;
        Ok(writer)
    }

    /// Data at an offset.
    ///
    /// # Errors
    /// Those of the output.
    pub fn data(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.put(&record(offset, data.len() as u32, 1))?;
        self.put(data)
    }

    /// Zeros at an offset.
    ///
    /// # Errors
    /// Those of the output.
    pub fn zeros(&mut self, mut offset: u64, mut length: u64) -> io::Result<()> {
        while length > 0 {
            let part = length.min(LONGEST_ZEROS);
            self.put(&record(offset, part as u32, 0))?;
            (offset, length) = (offset + part, length - part);
        }
        Ok(())
    }

    /// Ends it.
    ///
    /// # Errors
    /// Those of the output.
    pub fn finish(mut self) -> io::Result<()> {
        let checksum = self.checksum.clone().finalize();
        self.put(&record(u64::MAX, checksum, 0))?;
        self.output.flush()
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.checksum.update(bytes);
        self.output.write_all(bytes)
    }
}

/// Reads a stream.
pub struct ChangeReader<R> {
    input: R,
    checksum: crc32fast::Hasher,
    size_bytes: u64,
    through: u64,
}

/// One record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Data at an offset.
    Data(u64, Vec<u8>),
    /// So many zeros at an offset.
    Zeros(u64, u64),
}

impl<R: Read> ChangeReader<R> {
    /// Reads the beginning.
    ///
    /// # Errors
    /// When it is none, or can't be read.
    pub fn new(input: R) -> io::Result<Self> {
        let mut reader = Self { input, checksum: crc32fast::Hasher::new(), size_bytes: 0, through: 0 };
        let head = reader.take::<24>()?;
        if head[..8] != *MAGIC {
            return Err(io::Error::other(
                "it is no stream of changes as `gemel volume export --since` makes them",
            ));
        }
        if head[8..12] != FORMAT.to_le_bytes() {
            return Err(io::Error::other("it is of a format that this gemel does not know: use a newer one"));
        }
        reader.size_bytes = u64_of(&head[16..]);
        Ok(reader)
    }

    /// The size of the volume.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// The next change; none at the end, if everything was as it was written.
    ///
    /// # Errors
    /// When it is damaged or was cut short, or can't be read.
    pub fn next(&mut self) -> io::Result<Option<Change>> {
        let checksum = self.checksum.clone().finalize();
        let head = self.take::<16>()?;
        let (offset, length) = (u64_of(&head), u32::from_le_bytes([head[8], head[9], head[10], head[11]]));
        if offset == u64::MAX {
            return if length == checksum { Ok(None) } else { Err(damaged()) };
        }
        let end = offset.checked_add(u64::from(length)).filter(|end| *end <= self.size_bytes);
        let is_data = head[12..] == 1u32.to_le_bytes();
        let is_known = is_data && length <= LONGEST_DATA || head[12..] == [0; 4];
        self.through = end.filter(|_| is_known && offset >= self.through).ok_or_else(damaged)?;
        if !is_data {
            return Ok(Some(Change::Zeros(offset, u64::from(length))));
        }
        let mut data = vec![0; length as usize];
        self.input.read_exact(&mut data)?;
        self.checksum.update(&data);
        Ok(Some(Change::Data(offset, data)))
    }

    fn take<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.input.read_exact(&mut bytes)?;
        self.checksum.update(&bytes);
        Ok(bytes)
    }
}

fn record(offset: u64, length: u32, kind: u32) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&offset.to_le_bytes());
    bytes[8..12].copy_from_slice(&length.to_le_bytes());
    bytes[12..].copy_from_slice(&kind.to_le_bytes());
    bytes
}

fn u64_of(bytes: &[u8]) -> u64 {
    bytes.iter().take(8).rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

fn damaged() -> io::Error {
    io::Error::other("the stream of changes is damaged")
}

const MAGIC: &[u8; 8] = b"gemelchg";
const FORMAT: u32 = 1;
const LONGEST_DATA: u32 = 1 << 20;
const LONGEST_ZEROS: u64 = 1 << 30;

#[cfg(test)]
mod tests {
    use super::*;

    fn stream() -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut writer = ChangeWriter::new(&mut bytes, 8 << 30).unwrap();
        writer.data(4096, &[7; 8192]).unwrap();
        writer.zeros(1 << 20, (2 << 30) + 4096).unwrap();
        writer.data((8 << 30) - 4096, &[9; 4096]).unwrap();
        writer.finish().unwrap();
        bytes
    }

    fn read(bytes: &[u8]) -> io::Result<Vec<Change>> {
        let mut reader = ChangeReader::new(bytes)?;
        assert_eq!(reader.size_bytes(), 8 << 30);
        let mut all = Vec::new();
        while let Some(change) = reader.next()? {
            all.push(change);
        }
        Ok(all)
    }

    #[test]
    fn what_was_written_is_read() {
        let expected = [
            Change::Data(4096, vec![7; 8192]),
            Change::Zeros(1 << 20, 1 << 30),
            Change::Zeros((1 << 20) + (1 << 30), 1 << 30),
            Change::Zeros((1 << 20) + (2 << 30), 4096),
            Change::Data((8 << 30) - 4096, vec![9; 4096]),
        ];
        assert_eq!(read(&stream()).unwrap(), expected);
    }

    #[test]
    fn damage_and_a_missing_end_show() {
        let bytes = stream();
        for length in (0..60).chain([bytes.len() - 17, bytes.len() - 1]) {
            assert!(read(&bytes[..length]).is_err(), "{length}");
        }
        for at in (0..16).chain(24..60).chain([5000, bytes.len() - 30, bytes.len() - 6]) {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert!(read(&damaged).is_err(), "{at}");
        }
    }
}
