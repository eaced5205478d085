//! Images in the format of QEMU, version 3 ("qcow2", docs/interop/qcow2.txt of QEMU): made front to back, so that they
//! can go to a pipe, and read.
//!
//! What is allocated is known before anything is written; so the tables come first and the data behind them, in the
//! order of the guest's clusters, without a gap. All numbers are big-endian. Of what others make, whatever would need a
//! guess or another file is refused with what to do about it.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;

/// Bytes of a cluster in images that are made here: the usual ones.
pub const CLUSTER_BYTES: u64 = 1 << CLUSTER_BITS;

/// A set of clusters: 2 MiB for each TiB of a volume.
#[derive(Clone, Debug, Default)]
pub struct Clusters {
    words: Vec<u64>,
    count: u64,
}

impl Clusters {
    /// None of those that a volume of so many bytes has.
    #[must_use]
    pub fn none(size_bytes: u64) -> Self {
        let words = size_bytes.div_ceil(CLUSTER_BYTES).div_ceil(64);
        Self { words: vec![0; usize::try_from(words).unwrap_or(usize::MAX)], count: 0 }
    }

    /// Adds those of a range of bytes, which are in the volume.
    pub fn add(&mut self, offset: u64, length: u64) {
        for cluster in offset / CLUSTER_BYTES..(offset + length).div_ceil(CLUSTER_BYTES) {
            let word = &mut self.words[(cluster / 64) as usize];
            self.count += u64::from(*word & 1 << (cluster % 64) == 0);
            *word |= 1 << (cluster % 64);
        }
    }

    /// Whether one is among them.
    #[must_use]
    pub fn has(&self, cluster: u64) -> bool {
        self.words.get((cluster / 64) as usize).is_some_and(|word| word & 1 << (cluster % 64) != 0)
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The first of them from `cluster` on.
    #[must_use]
    pub fn next(&self, cluster: u64) -> Option<u64> {
        let mut index = (cluster / 64) as usize;
        let mut word = self.words.get(index)? & (u64::MAX << (cluster % 64));
        loop {
            if word != 0 {
                return Some(index as u64 * 64 + u64::from(word.trailing_zeros()));
            }
            index += 1;
            word = *self.words.get(index)?;
        }
    }
}

/// Where everything is in an image.
pub struct Layout {
    size_bytes: u64,
    mapped: Clusters,
    /// Those that read as zeros whatever is in the image behind.
    zeros: Clusters,
    /// Name and format of the image behind.
    backing: Option<(String, &'static str)>,
    /// Clusters of each table, in their order.
    reference_table: u64,
    reference_blocks: u64,
    first_level: u64,
    second_level: u64,
}

impl Layout {
    /// An image with these clusters; `zeros` are not among `mapped`.
    #[must_use]
    pub fn new(
        size_bytes: u64,
        mapped: Clusters,
        zeros: Clusters,
        backing: Option<(String, &'static str)>,
    ) -> Self {
        let tables = size_bytes.div_ceil(TABLE_SPAN);
        let mut layout = Self {
            size_bytes,
            mapped,
            zeros,
            backing,
            reference_table: 1,
            reference_blocks: 1,
            first_level: (tables * ENTRY_BYTES).div_ceil(CLUSTER_BYTES).max(1),
            second_level: 0,
        };
        layout.second_level = (0..tables).filter(|table| layout.has_table(*table)).count() as u64;
        // More of the image needs more to count it: until it is enough.
        loop {
            let blocks = layout.clusters().div_ceil(REFERENCES_IN_CLUSTER);
            let table = (blocks * ENTRY_BYTES).div_ceil(CLUSTER_BYTES);
            if (blocks, table) == (layout.reference_blocks, layout.reference_table) {
                return layout;
            }
            (layout.reference_blocks, layout.reference_table) = (blocks, table);
        }
    }

    /// Bytes of the whole image.
    #[cfg(test)]
    fn image_bytes(&self) -> u64 {
        self.clusters() * CLUSTER_BYTES
    }

    /// The clusters whose data follows the tables, in ascending order.
    #[must_use]
    pub fn mapped(&self) -> &Clusters {
        &self.mapped
    }

    /// Writes everything before the data.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn write_tables(&self, output: &mut impl Write) -> io::Result<()> {
        self.write_header(output)?;
        let mut table = Table::default();
        for block in 0..self.reference_blocks {
            table.put((1 + self.reference_table + block) * CLUSTER_BYTES, output)?;
        }
        table.finish(self.reference_table, output)?;
        self.write_references(output)?;
        let mut table = Table::default();
        let mut second = self.second_level_at();
        for index in 0..self.size_bytes.div_ceil(TABLE_SPAN) {
            let is_there = self.has_table(index);
            table.put(if is_there { (second * CLUSTER_BYTES) | ONLY_HERE } else { 0 }, output)?;
            second += u64::from(is_there);
        }
        table.finish(self.first_level, output)?;
        let mut data = self.data_at();
        for index in (0..self.size_bytes.div_ceil(TABLE_SPAN)).filter(|index| self.has_table(*index)) {
            let mut table = Table::default();
            for cluster in index * ENTRIES_IN_CLUSTER..(index + 1) * ENTRIES_IN_CLUSTER {
                let entry = match (self.mapped.has(cluster), self.zeros.has(cluster)) {
                    (true, _) => {
                        data += 1;
                        ((data - 1) * CLUSTER_BYTES) | ONLY_HERE
                    }
                    (false, true) => READS_AS_ZEROS,
                    (false, false) => 0,
                };
                table.put(entry, output)?;
            }
            table.finish(1, output)?;
        }
        Ok(())
    }

    fn write_header(&self, output: &mut impl Write) -> io::Result<()> {
        let mut header = Vec::with_capacity(CLUSTER_BYTES as usize);
        let (name, format) = self.backing.as_ref().map_or(("", ""), |(name, format)| (name, format));
        let extension = format.len().next_multiple_of(8) + if format.is_empty() { 0 } else { 8 };
        let name_at = HEADER_BYTES as usize + extension + 8;
        header.extend(MAGIC);
        header.extend(3u32.to_be_bytes());
        header.extend(if name.is_empty() { 0 } else { name_at as u64 }.to_be_bytes());
        header.extend((name.len() as u32).to_be_bytes());
        header.extend(CLUSTER_BITS.to_be_bytes());
        header.extend(self.size_bytes.to_be_bytes());
        header.extend(0u32.to_be_bytes()); // not encrypted
        header.extend((self.size_bytes.div_ceil(TABLE_SPAN) as u32).to_be_bytes());
        header.extend((self.first_level_at() * CLUSTER_BYTES).to_be_bytes());
        header.extend(CLUSTER_BYTES.to_be_bytes());
        header.extend((self.reference_table as u32).to_be_bytes());
        header.extend([0; 12]); // no snapshots inside
        header.extend([0; 24]); // no features
        header.extend(REFERENCE_ORDER.to_be_bytes());
        header.extend(HEADER_BYTES.to_be_bytes());
        if !format.is_empty() {
            header.extend(BACKING_FORMAT.to_be_bytes());
            header.extend((format.len() as u32).to_be_bytes());
            header.extend(format.as_bytes());
            header.resize(header.len().next_multiple_of(8), 0);
        }
        header.extend([0; 8]); // no more extensions
        header.extend(name.as_bytes());
        header.resize(CLUSTER_BYTES as usize, 0);
        output.write_all(&header)
    }

    /// Each cluster of the image is referred to once.
    fn write_references(&self, output: &mut impl Write) -> io::Result<()> {
        let mut left = self.clusters();
        for _ in 0..self.reference_blocks {
            let count = left.min(REFERENCES_IN_CLUSTER);
            let mut block = 1u16.to_be_bytes().repeat(count as usize);
            block.resize(CLUSTER_BYTES as usize, 0);
            output.write_all(&block)?;
            left -= count;
        }
        Ok(())
    }

    /// Whether a part of the volume has anything of its own.
    fn has_table(&self, table: u64) -> bool {
        let (first, end) = (table * ENTRIES_IN_CLUSTER, (table + 1) * ENTRIES_IN_CLUSTER);
        [&self.mapped, &self.zeros].iter().any(|set| set.next(first).is_some_and(|next| next < end))
    }

    fn first_level_at(&self) -> u64 {
        1 + self.reference_table + self.reference_blocks
    }

    fn second_level_at(&self) -> u64 {
        self.first_level_at() + self.first_level
    }

    fn data_at(&self) -> u64 {
        self.second_level_at() + self.second_level
    }

    fn clusters(&self) -> u64 {
        self.data_at() + self.mapped.count()
    }
}

/// Writes entries of 8 bytes, a cluster at a time.
#[derive(Default)]
struct Table {
    pending: Vec<u8>,
    written: u64,
}

impl Table {
    fn put(&mut self, entry: u64, output: &mut impl Write) -> io::Result<()> {
        self.pending.extend(entry.to_be_bytes());
        if self.pending.len() as u64 == CLUSTER_BYTES { self.flush(output) } else { Ok(()) }
    }

    fn finish(mut self, clusters: u64, output: &mut impl Write) -> io::Result<()> {
        while self.written < clusters {
            self.flush(output)?;
        }
        Ok(())
    }

    fn flush(&mut self, output: &mut impl Write) -> io::Result<()> {
        self.pending.resize(CLUSTER_BYTES as usize, 0);
        output.write_all(&self.pending)?;
        self.pending.clear();
        self.written += 1;
        Ok(())
    }
}

/// Why a file can't be read as an image.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// Reading failed.
    #[error("{0}")]
    File(#[from] io::Error),
    /// It is none.
    #[error("it is no qcow2 image")]
    NoImage,
    /// It is one, and damaged.
    #[error("the image is damaged: {0}; `qemu-img check` says more")]
    Damaged(&'static str),
    /// It uses what is not known here.
    #[error("it {0}: make a plain image of it with `qemu-img convert -O qcow2`")]
    Unknown(&'static str),
}

/// What a part of an image says about a part of the volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// So many bytes of data, at this place in the file.
    Data {
        /// Offset in the file.
        at: u64,
        /// Bytes.
        length: u64,
    },
    /// So many zeros.
    Zeros {
        /// Bytes.
        length: u64,
    },
}

/// An image that is read.
pub struct Image {
    file: File,
    file_bytes: u64,
    size_bytes: u64,
    cluster_bits: u32,
    is_version_3: bool,
    has_backing: bool,
    tables: Vec<u64>,
}

impl Image {
    /// Looks at a file.
    ///
    /// # Errors
    /// When it is no image that can be read here.
    pub fn open(file: File) -> Result<Self, ImageError> {
        let file_bytes = file.metadata()?.len();
        let mut header = [0; HEADER_BYTES as usize];
        let length = header.len().min(usize::try_from(file_bytes).unwrap_or(usize::MAX));
        file.read_exact_at(&mut header[..length], 0)?;
        let u32_at =
            |at: usize| u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let u64_at = |at: usize| u64::from(u32_at(at)) << 32 | u64::from(u32_at(at + 4));
        let version = u32_at(4);
        if header[..4] != MAGIC || !matches!(version, 2 | 3) || length < OLD_HEADER_BYTES {
            return Err(ImageError::NoImage);
        }
        let features = if version == 3 { u64_at(72) } else { 0 };
        let (cluster_bits, first_level_entries) = (u32_at(20), u32_at(36));
        for (is_so, what) in [
            (u32_at(32) != 0, "is encrypted"),
            (features & 1 << 2 != 0, "has its data in another file"),
            (features & !(1 | 1 << 1 | 1 << 2) != 0, "uses features that are not known here"),
        ] {
            if is_so {
                return Err(ImageError::Unknown(what));
            }
        }
        let size_bytes = u64_at(24);
        if features & 1 << 1 != 0 {
            return Err(ImageError::Damaged("it says so itself"));
        }
        if !(9..=21).contains(&cluster_bits) || size_bytes > MOST_BYTES {
            return Err(ImageError::Damaged("its sizes are out of bounds"));
        }
        let span = 1u64 << (2 * cluster_bits - 3);
        if u64::from(first_level_entries) < size_bytes.div_ceil(span) {
            return Err(ImageError::Damaged("its first table is too short"));
        }
        let tables = read_entries(&file, file_bytes, u64_at(40), size_bytes.div_ceil(span))?;
        Ok(Self {
            file,
            file_bytes,
            size_bytes,
            cluster_bits,
            is_version_3: version == 3,
            has_backing: u64_at(8) != 0,
            tables,
        })
    }

    /// Bytes of the volume.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Whether what it says nothing of is in another image.
    #[must_use]
    pub fn has_backing(&self) -> bool {
        self.has_backing
    }

    /// Calls `found` for whatever the image says something of, in ascending order, until that fails.
    ///
    /// # Errors
    /// When the image is damaged, or `found` fails.
    pub fn parts<E: From<ImageError>>(
        &self,
        mut found: impl FnMut(u64, Part) -> Result<(), E>,
    ) -> Result<(), E> {
        let cluster_bytes = 1u64 << self.cluster_bits;
        let entries = cluster_bytes / ENTRY_BYTES;
        for (index, table) in (0..).zip(&self.tables) {
            let at = table & OFFSET_BITS;
            if at == 0 {
                continue;
            }
            let first = index * entries * cluster_bytes;
            let count = entries.min((self.size_bytes - first).div_ceil(cluster_bytes));
            for (number, entry) in (0..).zip(read_entries(&self.file, self.file_bytes, at, count)?) {
                let offset = first + number * cluster_bytes;
                let length = cluster_bytes.min(self.size_bytes - offset);
                if entry & COMPRESSED != 0 {
                    return Err(ImageError::Unknown("has compressed data").into());
                }
                let at = entry & OFFSET_BITS;
                if entry & READS_AS_ZEROS != 0 && self.is_version_3 {
                    found(offset, Part::Zeros { length })?;
                } else if at != 0 {
                    if at
                        .checked_add(length)
                        .is_none_or(|end| end > self.file_bytes.next_multiple_of(cluster_bytes))
                    {
                        return Err(ImageError::Damaged("data lies behind the end of the file").into());
                    }
                    found(offset, Part::Data { at, length })?;
                }
            }
        }
        Ok(())
    }

    /// Reads data of a part. What the file is too short for is zeros: its last cluster need not be whole.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn read(&self, at: u64, data: &mut [u8]) -> Result<(), ImageError> {
        let there = self.file_bytes.saturating_sub(at).min(data.len() as u64) as usize;
        self.file.read_exact_at(&mut data[..there], at)?;
        data[there..].fill(0);
        Ok(())
    }
}

fn read_entries(file: &File, file_bytes: u64, at: u64, count: u64) -> Result<Vec<u64>, ImageError> {
    let length = count.saturating_mul(ENTRY_BYTES);
    if at.checked_add(length).is_none_or(|end| end > file_bytes) {
        return Err(ImageError::Damaged("a table lies behind the end of the file"));
    }
    let mut bytes = vec![0; usize::try_from(length).map_err(|_| ImageError::Damaged("a table is too long"))?];
    file.read_exact_at(&mut bytes, at)?;
    let (entries, _) = bytes.as_chunks::<8>();
    Ok(entries.iter().map(|entry| u64::from_be_bytes(*entry)).collect())
}

const MAGIC: [u8; 4] = *b"QFI\xfb";
const CLUSTER_BITS: u32 = 16;
const ENTRY_BYTES: u64 = 8;
const ENTRIES_IN_CLUSTER: u64 = CLUSTER_BYTES / ENTRY_BYTES;
/// Bytes of a volume that one table of the second level is about.
const TABLE_SPAN: u64 = ENTRIES_IN_CLUSTER * CLUSTER_BYTES;
/// References are counted in 2^4 bits.
const REFERENCE_ORDER: u32 = 4;
const REFERENCES_IN_CLUSTER: u64 = CLUSTER_BYTES / 2;
const HEADER_BYTES: u32 = 104;
/// Of version 2.
const OLD_HEADER_BYTES: usize = 72;
/// Header extension: the format of the image behind.
const BACKING_FORMAT: u32 = 0xe279_2aca;
/// What an entry refers to is referred to by nothing else.
const ONLY_HERE: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
const READS_AS_ZEROS: u64 = 1;
const OFFSET_BITS: u64 = 0x00ff_ffff_ffff_fe00;
/// A PiB: more than any volume.
const MOST_BYTES: u64 = 1 << 50;

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn made(size_bytes: u64, data: &[u64], zeros: &[u64], backing: Option<&str>) -> Vec<u8> {
        let (mut mapped, mut empty) = (Clusters::none(size_bytes), Clusters::none(size_bytes));
        data.iter().for_each(|cluster| mapped.add(cluster * CLUSTER_BYTES, 1));
        zeros.iter().for_each(|cluster| empty.add(cluster * CLUSTER_BYTES, 1));
        let backing = backing.map(|name| (name.to_owned(), "raw"));
        let layout = Layout::new(size_bytes, mapped, empty, backing);
        let mut image = Vec::new();
        layout.write_tables(&mut image).unwrap();
        for cluster in data {
            image.extend(vec![*cluster as u8 + 1; CLUSTER_BYTES as usize]);
        }
        assert_eq!(image.len() as u64, layout.image_bytes());
        image
    }

    fn file_of(image: &[u8]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(image).unwrap();
        file
    }

    fn parts(image: &[u8]) -> Result<Vec<(u64, Part)>, ImageError> {
        let image = Image::open(file_of(image).reopen().unwrap())?;
        let mut all = Vec::new();
        image.parts(|offset, part| {
            all.push((offset, part));
            Ok::<_, ImageError>(())
        })?;
        Ok(all)
    }

    #[test]
    fn what_is_made_is_read_again() {
        let size = (600 << 20) + 4096;
        let image = made(size, &[0, 7, 8192, 9600], &[3, 9000], None);
        let at = |cluster: u64| cluster * CLUSTER_BYTES;
        let first = image.len() as u64 - 4 * CLUSTER_BYTES;
        let data = |number, length| Part::Data { at: first + number * CLUSTER_BYTES, length };
        let expected = [
            (0, data(0, CLUSTER_BYTES)),
            (at(3), Part::Zeros { length: CLUSTER_BYTES }),
            (at(7), data(1, CLUSTER_BYTES)),
            (at(8192), data(2, CLUSTER_BYTES)),
            (at(9000), Part::Zeros { length: CLUSTER_BYTES }),
            (at(9600), data(3, 4096)),
        ];
        assert_eq!(parts(&image).unwrap(), expected);
    }

    /// QEMU itself finds nothing wrong with them.
    #[test]
    fn qemu_takes_them() {
        for (size, data) in
            [(4096, vec![]), (1 << 20, vec![0, 15]), (3 << 30, (0..200).map(|n| n * 240).collect())]
        {
            let image = file_of(&made(size, &data, &[1], None));
            let checked =
                Command::new("qemu-img").arg("check").arg("-f").arg("qcow2").arg(image.path()).output();
            // Where it is not installed the tests on real processes miss it loudly.
            let Ok(checked) = checked else { return };
            assert!(checked.status.success(), "{size}: {}", String::from_utf8_lossy(&checked.stdout));
        }
    }

    #[test]
    fn damage_is_no_panic() {
        let image = made(1 << 20, &[0, 5], &[3], Some("base"));
        for length in (0..120).chain([CLUSTER_BYTES as usize, image.len() - 2 * CLUSTER_BYTES as usize - 1]) {
            assert!(parts(&image[..length]).is_err(), "{length}");
        }
        for at in 0..HEADER_BYTES as usize {
            let mut damaged = image.clone();
            damaged[at] ^= 0x80;
            let _ = parts(&damaged);
        }
    }

    #[test]
    fn what_is_not_known_is_refused() {
        let image = made(1 << 20, &[0], &[], None);
        let with = |at: usize, value: u8| {
            let mut other = image.clone();
            other[at] = value;
            parts(&other)
        };
        assert!(matches!(with(35, 1), Err(ImageError::Unknown("is encrypted"))));
        assert!(matches!(with(79, 4), Err(ImageError::Unknown("has its data in another file"))));
        assert!(matches!(with(79, 16), Err(ImageError::Unknown(_))));
        assert!(matches!(with(79, 2), Err(ImageError::Damaged(_))));
        assert!(matches!(with(7, 4), Err(ImageError::NoImage)));
        assert!(with(79, 1).is_ok(), "counts of references that are not up to date do not matter");
    }

    #[test]
    fn clusters_are_found_in_order() {
        let mut clusters = Clusters::none(300 * CLUSTER_BYTES);
        clusters.add(10, 1);
        clusters.add(64 * CLUSTER_BYTES - 1, 2);
        clusters.add(299 * CLUSTER_BYTES, CLUSTER_BYTES);
        let (mut found, mut from) = (Vec::new(), 0);
        while let Some(cluster) = clusters.next(from) {
            found.push(cluster);
            from = cluster + 1;
        }
        assert_eq!((found, clusters.count()), (vec![0, 63, 64, 299], 4));
    }
}
