//! The picker's invariant, for debug builds and tests: it costs a look at everything.

use super::{Block, BlockIndex, BlockRef, Picker};

impl Picker {
    /// Checks the invariant of the module's text; an error names the first piece that breaks it.
    ///
    /// # Errors
    /// What is wrong, for a person.
    pub fn check(&self) -> Result<(), String> {
        for (index, piece) in &self.pieces {
            let open = piece.due().is_some_and(|due| self.open.contains(&(due, *index)));
            let always = piece.due().is_some_and(|due| self.open_always.contains(&(due, *index)));
            if always != (open && piece.beyond_budget()) {
                return Err(format!("piece {} may go beyond the budget: {always}", index.0));
            }
            if piece.demands.is_empty() && piece.parts.is_none() {
                return Err(format!("piece {} is kept for nothing", index.0));
            }
            if piece.demands.is_empty() && open {
                return Err(format!("piece {} is open and nobody wants it", index.0));
            }
            if !piece.demands.is_empty() && piece.is_open() != open {
                return Err(format!("piece {} open: {open}, should be {}", index.0, piece.is_open()));
            }
            let Some(parts) = &piece.parts else { continue };
            let free = parts.blocks.iter().filter(|b| matches!(b, Block::Missing)).count();
            let left = parts.blocks.iter().filter(|b| !matches!(b, Block::Received(_))).count();
            if free != parts.free as usize || left != parts.left as usize {
                return Err(format!("piece {}: counts of blocks are wrong", index.0));
            }
            if piece.verifying != (left == 0) {
                return Err(format!("piece {}: verifying is {}", index.0, piece.verifying));
            }
            let first = parts.blocks.iter().position(|b| matches!(b, Block::Missing));
            if first.unwrap_or(parts.blocks.len()) != parts.first_free as usize {
                return Err(format!("piece {}: its first free block isn't {}", index.0, parts.first_free));
            }
            for (i, block) in parts.blocks.iter().enumerate() {
                let state = block;
                let block = BlockRef { piece: *index, block: BlockIndex(i as u32) };
                if let Block::Recalled(key) = state
                    && !self.peers.get(key).is_some_and(|p| p.is_recalled(block))
                {
                    return Err(format!(
                        "piece {} block {i}: recalled from a peer that doesn't know",
                        index.0
                    ));
                }
                let Block::Requested(peers) = state else { continue };
                if peers.is_empty() || !peers.iter().all(|k| self.peers.get(k).is_some_and(|p| p.owes(block)))
                {
                    return Err(format!("piece {} block {i}: asked of a peer that doesn't know", index.0));
                }
            }
        }
        for (key, peer) in &self.peers {
            for block in peer.in_flight() {
                let known = self.pieces.get(&block.piece).and_then(|p| p.parts.as_ref()).is_some_and(|p| {
                    matches!(p.blocks.get(block.block.0 as usize), Some(Block::Requested(peers)) if peers.contains(key))
                });
                if !known {
                    return Err(format!(
                        "peer {} owes a block of piece {} that nobody asked",
                        key.0, block.piece.0
                    ));
                }
            }
        }
        let held: u64 = self
            .pieces
            .iter()
            .filter(|(_, p)| p.parts.is_some())
            .map(|(i, _)| u64::from(self.geometry.piece_len(*i)))
            .sum();
        if held != self.held {
            return Err(format!("held is {}, should be {held}", self.held));
        }
        let parts = self.pieces.values().filter_map(|p| p.parts.as_ref());
        let filled: usize =
            parts.map(|p| p.blocks.iter().filter(|b| !matches!(b, Block::Missing)).count()).sum();
        if filled as u64 != self.filled {
            return Err(format!("{} blocks filled, should be {filled}", self.filled));
        }
        Ok(())
    }
}
