//! The manual is true and reads well: it leads nowhere that is not there, and keeps to its style sheet.

mod links;
mod prose;
mod text;
