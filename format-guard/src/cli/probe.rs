//! `format-guard probe`: reads devices for the agent, in a process that may hang in the agent's place.
//!
//! Requests and answers are lines of JSON. Before the process parses what a device holds it prints an empty
//! line, and it ends after that answer: hostile content that takes the process over cannot falsify the answer
//! for another device.

use std::io;

use super::CommandError;
use crate::volume::{
    copies::{self, hexadecimal},
    probe::{Answered, Probed, Reader, Request},
};

pub(super) fn run() -> Result<(), CommandError> {
    let mut reader = Reader::new().map_err(anyhow::Error::from)?;
    for line in io::stdin().lines() {
        let line = line.map_err(anyhow::Error::from)?;
        let request: Request = serde_json::from_str(&line).map_err(anyhow::Error::from)?;
        let mut parsed = false;
        let probed = reader.probe(&request, || {
            parsed = true;
            println!();
        });
        let answer = match probed {
            Ok(Probed { finding, twice, pieces }) => {
                let copy = (!pieces.is_empty()).then(|| hexadecimal::of(&copies::pack(&pieces)));
                Answered { result: Ok(finding), twice, copy }
            }
            Err(error) => Answered { result: Err(error), twice: false, copy: None },
        };
        println!("{}", serde_json::to_string(&answer).map_err(anyhow::Error::from)?);
        if parsed {
            break;
        }
    }
    Ok(())
}
