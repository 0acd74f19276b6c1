//! Which ports of a holding one destination uses: found in constant time however full it is.
//!
//! Uniqueness of tuples is the flow table's business: a port is taken by inserting the reverse
//! entry. What stands here is a hint that makes the search cheap. Few flows to a destination are
//! placed by chance; from [`WATCH_FROM`] on, the destination gets a row of [`Positions`], a bitmap
//! over the node's holding (position = block index * 8 + offset) with two levels of summary, so
//! that a free position is found with three reads and a full holding is seen with one.
