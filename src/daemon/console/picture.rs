//! The array as a picture: two rooms with their disks, the witness, and the links between them. What is broken has a
//! broken outline, so it can be told without colours too.

use std::fmt::Write;

use super::page::escape;
use super::words::Words;
use crate::rpc::management::{DiskState, NodeState, PoolState, Status, VolumeState, WitnessState};

/// Width of the picture, in its own units.
const WIDTH: u32 = 640;
/// Width of a node.
const NODE: u32 = 220;
/// Where nodes begin from the top.
const TOP: u32 = 100;
/// Side of a disk, and from one to the next.
const DISK: [u32; 2] = [16, 22];
/// Disks in a row of a node.
const DISKS_A_ROW: usize = 9;

/// The picture as SVG.
pub fn draw(status: &Status, words: &Words) -> String {
    let mut shapes = String::new();
    let mut told = Vec::new();
    let nodes: Vec<_> = status.nodes.iter().take(2).collect();
    let is_up = |index: usize| nodes.get(index).is_some_and(|node| node.state() != NodeState::Down);
    let rows =
        status.pools.iter().map(|pool| pool.disks.len().div_ceil(DISKS_A_ROW)).max().unwrap_or(1).max(1);
    let height = 70 + DISK[1] * rows as u32;
    // Writing to a string does not fail.
    if let Some(witness) = &status.witness {
        let is_there = witness.state() == WitnessState::Up;
        for index in 0..nodes.len() {
            let class = if is_there && is_up(index) { "ok" } else { "gone" };
            let x = center(index, nodes.len());
            let _ = write!(
                shapes,
                "<line class=\"{class}\" x1=\"{}\" y1=\"50\" x2=\"{x}\" y2=\"{TOP}\"/>",
                WIDTH / 2
            );
        }
        let class = if is_there { "ok" } else { "gone" };
        let _ = write!(
            shapes,
            "<rect class=\"box {class}\" x=\"{}\" y=\"10\" width=\"120\" height=\"40\" rx=\"8\"/>\
             <text x=\"{}\" y=\"35\" text-anchor=\"middle\">{} {}</text>",
            WIDTH / 2 - 60,
            WIDTH / 2,
            words.witness,
            mark(is_there)
        );
        told.push(format!("{} {}", words.witness, mark(is_there)));
    }
    if nodes.len() == 2 {
        let is_mirrored = status.volumes.iter().all(|volume| volume.state() == VolumeState::InSync);
        let class = match (is_up(0) && is_up(1), is_mirrored) {
            (true, true) => "ok",
            (true, false) => "reduced",
            (false, _) => "gone",
        };
        let y = TOP + height / 2;
        let (from, to) = (center(0, 2) + NODE / 2, center(1, 2) - NODE / 2);
        let _ = write!(shapes, "<line class=\"{class}\" x1=\"{from}\" y1=\"{y}\" x2=\"{to}\" y2=\"{y}\"/>");
    }
    for (index, node) in nodes.iter().enumerate() {
        let pool = status.pools.iter().find(|pool| pool.node == node.name);
        let class = match (is_up(index), pool.map(|pool| pool.state())) {
            (false, _) | (_, Some(PoolState::Offline)) => "gone",
            (true, Some(PoolState::Ok)) => "ok",
            (true, _) => "reduced",
        };
        let left = center(index, nodes.len()) - NODE / 2;
        let served = status.volumes.iter().filter(|volume| volume.primary == node.name).count();
        let name = escape(&node.name);
        let _ = write!(
            shapes,
            "<rect class=\"box {class}\" x=\"{left}\" y=\"{TOP}\" width=\"{NODE}\" height=\"{height}\" rx=\"10\"/>\
             <text x=\"{}\" y=\"{}\">{} {name} {}</text><text x=\"{}\" y=\"{}\">{}: {served}</text>",
            left + 12,
            TOP + 24,
            words.node,
            mark(is_up(index)),
            left + 12,
            TOP + 44,
            words.volumes,
        );
        for (place, disk) in pool.iter().flat_map(|pool| &pool.disks).enumerate() {
            let class = match disk.state() {
                DiskState::Ok => "ok",
                DiskState::Spare | DiskState::Rebuilding | DiskState::Failing => "reduced",
                _ => "gone",
            };
            let x = left + 12 + DISK[1] * (place % DISKS_A_ROW) as u32;
            let y = TOP + 56 + DISK[1] * (place / DISKS_A_ROW) as u32;
            let title = escape(&format!("{} {}", disk.path, crate::rpc::json::name::<DiskState>(disk.state)));
            let _ = write!(
                shapes,
                "<rect class=\"box disk {class}\" x=\"{x}\" y=\"{y}\" width=\"{0}\" height=\"{0}\" rx=\"3\">\
                 <title>{title}</title></rect>",
                DISK[0]
            );
        }
        told.push(format!("{} {name} {}", words.node, mark(is_up(index))));
    }
    format!(
        "<svg class=\"picture\" role=\"img\" aria-label=\"{}\" viewBox=\"0 0 {WIDTH} {}\">{shapes}</svg>",
        told.join(", "),
        TOP + height + 10
    )
}

/// The middle of a node.
fn center(index: usize, count: usize) -> u32 {
    match (count, index) {
        (2, 0) => 130,
        (2, _) => WIDTH - 130,
        _ => WIDTH / 2,
    }
}

/// A sign that needs no colour.
fn mark(is_well: bool) -> &'static str {
    if is_well { "✓" } else { "✕" }
}
