//! The manual is true and reads well: it leads nowhere that is not there, says what the code does, and keeps
//! to its style sheet.

mod links;
mod pictures;
mod prose;
mod reference;
mod tables;
mod text;
