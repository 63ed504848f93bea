use std::io::{self, BufWriter, Write as _};

use clap::ValueEnum;
use cvmfs_core::cli::{GlobalArgs, OUTPUT, parse_bytes};
use cvmfs_core::clock::UnixSeconds;
use cvmfs_core::error::{Error, Result};
use cvmfs_core::glob::Pattern;
use cvmfs_core::listing::Listed;
use cvmfs_core::path::RepoPath;
use cvmfs_publish::find::{self, Criteria};

/// Find entries of a revision by name, type, size, time and owner
///
/// In patterns `*` stands for any bytes and `?` for one; a backslash takes the meaning from them.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  cvmfs-publish find /software --name '*.so' --type f --min-size 10M
  cvmfs-publish find --tag v1.0 --newer 2026-01-01 --print0 | xargs -0 -n1 echo")]
pub(super) struct Arguments {
    /// Where to begin
    #[arg(default_value = "/")]
    top: RepoPath,
    /// The name matches this pattern
    #[arg(long, value_name = "PATTERN", value_parser = pattern)]
    name: Option<Pattern>,
    /// The whole path matches this pattern; `*` stands for slashes, too
    #[arg(long, value_name = "PATTERN", value_parser = pattern)]
    path: Option<Pattern>,
    /// The type is one of these
    #[arg(long = "type", value_name = "TYPE", value_delimiter = ',')]
    types: Vec<Type>,
    /// A file of at least so many bytes (suffixes K, M, G, T)
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    min_size: Option<u64>,
    /// A file of at most so many bytes
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    max_size: Option<u64>,
    /// Modified after this time, such as 2026-01-31, 2026-01-31T12:00:00Z or @1800000000
    #[arg(long, value_name = "TIME")]
    newer: Option<UnixSeconds>,
    /// Modified before this time
    #[arg(long, value_name = "TIME")]
    older: Option<UnixSeconds>,
    /// The owner has this number
    #[arg(long, value_name = "ID")]
    uid: Option<u32>,
    /// The group has this number
    #[arg(long, value_name = "ID")]
    gid: Option<u32>,
    /// Not more than so many directories below the beginning
    #[arg(long, value_name = "COUNT")]
    max_depth: Option<usize>,
    /// Print paths as they are, each followed by a NUL byte
    #[arg(short = '0', long)]
    print0: bool,
    #[command(flatten)]
    tree: super::TreeArgs,
}

/// Letters of `find -type`.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Type {
    /// Regular file
    F,
    /// Directory
    D,
    /// Symbolic link
    L,
    /// FIFO
    P,
    /// Socket
    S,
    /// Character device
    C,
    /// Block device
    B,
}

impl From<Type> for find::Type {
    fn from(letter: Type) -> Self {
        match letter {
            Type::F => Self::File,
            Type::D => Self::Directory,
            Type::L => Self::Symlink,
            Type::P => Self::Fifo,
            Type::S => Self::Socket,
            Type::C => Self::CharacterDevice,
            Type::B => Self::BlockDevice,
        }
    }
}

fn pattern(text: &str) -> Result<Pattern> {
    let invalid = || Error::invalid(format!("pattern {text:?}"), "a backslash must stand before * ? or a backslash");
    Pattern::parse(text.as_bytes()).ok_or_else(invalid)
}

pub(super) fn run(global: &GlobalArgs, arguments: &Arguments) -> Result<()> {
    let mut tree = arguments.tree.open(global)?;
    let criteria = Criteria {
        name: arguments.name.clone(),
        path: arguments.path.clone(),
        types: arguments.types.iter().map(|letter| (*letter).into()).collect(),
        min_size: arguments.min_size,
        max_size: arguments.max_size,
        newer: arguments.newer,
        older: arguments.older,
        uid: arguments.uid,
        gid: arguments.gid,
        max_depth: arguments.max_depth,
    };
    let mut out = BufWriter::new(io::stdout().lock());
    let mut listed = Vec::new();
    find::find(&mut tree, &arguments.top, &criteria, &mut |path, row| {
        let written = if global.json {
            listed.push(Listed::new(path, row.hardlinks.count, &row.entry));
            Ok(())
        } else if arguments.print0 {
            out.write_all(b"/").and_then(|()| out.write_all(path.as_bytes())).and_then(|()| out.write_all(b"\0"))
        } else {
            writeln!(out, "{path}")
        };
        written.map_err(|error| Error::io(OUTPUT, error))
    })?;
    out.flush().map_err(|error| Error::io(OUTPUT, error))?;
    drop(out);
    if global.json { global.print(&listed, "") } else { Ok(()) }
}
