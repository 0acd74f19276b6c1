//! One machine: loads and attaches the programs, applies table edits, reports what runs.
