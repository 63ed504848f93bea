use cvmfs_core::cli::{GlobalArgs, cancel_on_signals, now};
use cvmfs_core::error::{Error, Result};
use cvmfs_core::path::RepositoryName;
use cvmfs_core::trust::token::Token;
use cvmfs_publish::card;
use cvmfs_publish::resign::key_file_of;
use serde::Serialize;

use super::TokenArgs;

/// Keep the master key in a smartcard, or another token that speaks PKCS#11
///
/// CVMFS_MASTERKEYCARD_MODULE names the library that speaks with it, CVMFS_MASTERKEYCARD_PIN has the PIN (123456 if it is not
/// set). With the former, `resign` and `serve` sign with the token where there is no key file.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  cvmfs-publish masterkeycard -a --module opensc-pkcs11.so
  cvmfs-publish masterkeycard -s software.example.org     # then back up the .masterkey
  cvmfs-publish masterkeycard -c -f software.example.org  # and remove it here
  cvmfs-publish masterkeycard -r > software.example.org.pub")]
pub(super) struct Arguments {
    #[command(flatten)]
    action: Action,
    /// Do what cannot be undone: replace a key in the card (-s), remove it (-d), remove key files (-c)
    #[arg(short, long)]
    force: bool,
    #[command(flatten)]
    token: TokenArgs,
    /// The repository whose key is stored, or the repositories that are converted
    #[arg(value_name = "FQRN")]
    names: Vec<RepositoryName>,
}

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct Action {
    /// Is there a card?
    #[arg(short, long)]
    available: bool,
    /// Does it have a key?
    #[arg(short, long)]
    key: bool,
    /// Store the master key of a repository
    #[arg(short, long)]
    store: bool,
    /// Remove key and certificate from the card
    #[arg(short, long)]
    delete: bool,
    /// Print the public key
    #[arg(short, long)]
    read: bool,
    /// Have repositories use the card: their public master key becomes that of the card, the whitelist is signed with it, and the
    /// master key's file is removed
    #[arg(short, long)]
    convert: bool,
}

#[derive(Serialize)]
struct Document {
    token: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    public_key: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    converted: Vec<card::Converted>,
}

pub(super) fn run(global: &GlobalArgs, arguments: &Arguments) -> Result<()> {
    let Arguments { action, names, .. } = arguments;
    let root = global.server_root()?;
    let mut token = Token::find(&arguments.token.required()?)?;
    let mut document = Document { token: token.name().to_owned(), public_key: None, converted: Vec::new() };
    if !action.available {
        token.log_in()?;
    }
    let only = || match &names[..] {
        [name] => Ok(name.clone()),
        [] => root.only_repository(),
        _ => Err(Error::invalid("masterkeycard", "name one repository")),
    };
    let text = if action.available {
        format!("{} is available\n", token.name())
    } else if action.key || action.read {
        let pem = String::from_utf8_lossy(&token.key(&[])?.public().to_pem()?).into_owned();
        let text = if action.read { pem.clone() } else { format!("{} has a key\n", token.name()) };
        document.public_key = Some(pem);
        text
    } else if action.store {
        let name = only()?;
        if token.key(&[]).is_ok() {
            arguments.confirm("the card has a key already")?;
        }
        let key = key_file_of(&root, &name)?;
        token.store(&key, &name)?;
        format!(
            "{} has the master key of {name} now. Keep {} in safe places, and remove it here with `masterkeycard -c -f`\n",
            token.name(),
            root.key_file(&name, "masterkey").display()
        )
    } else if action.delete {
        arguments.confirm("the key in the card would be lost")?;
        let found = token.remove()?;
        format!("{} {}\n", token.name(), if found { "has no key any more" } else { "had no key" })
    } else {
        arguments.confirm("the files of master keys would be removed")?;
        let names = if names.is_empty() { vec![root.only_repository()?] } else { names.clone() };
        let (now, cancel) = (now()?, cancel_on_signals()?);
        for name in &names {
            cancel.check()?;
            document.converted.push(card::convert(&root, name, &token, now)?);
        }
        document.converted.iter().map(|converted| format!("{converted}\n")).collect()
    };
    global.print(&document, &text)
}

impl Arguments {
    fn confirm(&self, consequence: &str) -> Result<()> {
        if self.force {
            Ok(())
        } else {
            Err(Error::invalid("masterkeycard", format!("{consequence}: say so with --force")))
        }
    }
}
