//! What all commands share that convert images.

use std::path::PathBuf;

use clap::ValueEnum;
use cvmfs_core::clock::UnixSeconds;
use cvmfs_core::commit::Publisher;
use cvmfs_core::compression::{Effort, Engine, Policy as Compression};
use cvmfs_core::error::Result;
use cvmfs_core::repository::Selector;
use cvmfs_ingest::image::convert::Options;
use cvmfs_ingest::image::layout::bookkeeping::{Permissions, PodmanMode, Policy, Whiteouts};
use cvmfs_ingest::image::library::layer_form;
use cvmfs_ingest::image::manifest::Platforms;
use cvmfs_ingest::image::notify::{EventFile, Listener};
use cvmfs_ingest::image::webhook::Webhook;

/// How images are converted.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Images")]
pub(super) struct ConversionArgs {
    /// Take the image for this platform, or `all` of an index, each beside the others
    #[arg(long, value_name = "OS/ARCH[/VARIANT]", default_value_t)]
    platform: Platforms,
    /// Make no root file systems, and no links to them
    #[arg(short = 's', long)]
    skip_flat: bool,
    /// Do not keep the layers, each on its own
    #[arg(short = 'd', long)]
    skip_layers: bool,
    /// How images are in podman's additional image store
    #[arg(long, value_name = "FORM", value_enum, default_value_t = PodmanArg::Flat)]
    podman: PodmanArg,
    /// How the layers say what they remove: as files for fuse-overlayfs, or as overlay mounts by the kernel want it. The
    /// first image decides for all of the repository [default: as the repository has it, or else aufs]
    #[arg(long, value_name = "FORM", value_enum)]
    whiteouts: Option<WhiteoutsArg>,
    /// Permissions in the root file systems
    #[arg(long, value_name = "POLICY", value_enum, default_value_t = PermissionsArg::Keep)]
    permissions: PermissionsArg,
    /// Convert images again that did not change
    #[arg(short = 'g', long)]
    convert_again: bool,
    /// Append what happens to this file, a JSON object a line
    #[arg(short = 'n', long, value_name = "FILE")]
    notification_file: Option<PathBuf>,
    /// Send what happens to this URL with POST, as JSON
    #[arg(long, value_name = "URL")]
    webhook: Option<String>,
    /// Layers that are fetched at once
    #[arg(long, value_name = "NUMBER", default_value_t = 4, env = "DUCC_MAX_CONCURRENT_DOWNLOADS")]
    parallel: usize,
    /// Threads that compress and hash, for each of them [default: one a core]
    #[arg(long, value_name = "NUMBER", default_value_t = 0, hide_default_value = true)]
    threads: usize,
    /// How files are stored: `zlib`, `none`, or `auto` [default: as the repository is configured]
    #[arg(long, value_name = "KIND")]
    compression: Option<Compression>,
    /// Effort of compression, 1 (fast) to 9 (small)
    #[arg(long, value_name = "LEVEL", default_value_t = Effort::default().level, value_parser = clap::value_parser!(u8).range(1..=9))]
    level: u8,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum PodmanArg {
    /// As one layer, their root file system
    Flat,
    /// As their layers
    Layers,
    /// Not at all
    Off,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum WhiteoutsArg {
    /// `.wh.` files
    Aufs,
    /// Devices 0:0 and attributes
    Overlay,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum PermissionsArg {
    /// As the image has them
    Keep,
    /// Everybody may read, run and enter what the owner may
    WorldReadable,
}

impl ConversionArgs {
    /// Whoever the arguments want to hear what happens.
    pub(super) fn listener(&self) -> Result<Box<dyn Listener>> {
        let mut listeners: Vec<Box<dyn Listener>> = Vec::new();
        if let Some(path) = &self.notification_file {
            listeners.push(Box::new(EventFile::open(path)?));
        }
        if let Some(url) = &self.webhook {
            listeners.push(Box::new(Webhook::start(url)?));
        }
        Ok(Box::new(listeners))
    }

    /// What the arguments and the repository's configuration ask for.
    pub(super) fn options(&self, publisher: &Publisher, now: UnixSeconds) -> Result<Options> {
        let mut tree = publisher.head(now)?.tree(&Selector::Head)?;
        let mut options = Options::new(publisher, self.policy(layer_form(&mut tree)?), now)?;
        options.again = self.convert_again;
        options.parallel = self.parallel;
        let pipeline = &mut options.publication.pipeline;
        pipeline.threads = self.threads;
        pipeline.compression = self.compression.unwrap_or(pipeline.compression);
        pipeline.effort = Effort { engine: Engine::default(), level: self.level };
        options.publication.commit.effort = pipeline.effort;
        options.publication.commit.threads = self.threads;
        Ok(options)
    }

    /// `form` is that of the layers that the repository has.
    fn policy(&self, form: Option<Whiteouts>) -> Policy {
        let layers = match self.whiteouts {
            _ if self.skip_layers => None,
            None => Some(form.unwrap_or_default()),
            Some(WhiteoutsArg::Aufs) => Some(Whiteouts::Aufs),
            Some(WhiteoutsArg::Overlay) => Some(Whiteouts::Overlay),
        };
        let podman = match self.podman {
            PodmanArg::Flat if !self.skip_flat => Some(PodmanMode::Flat),
            PodmanArg::Layers if !self.skip_layers => Some(PodmanMode::Layers),
            _ => None,
        };
        let permissions = match self.permissions {
            PermissionsArg::Keep => Permissions::Keep,
            PermissionsArg::WorldReadable => Permissions::WorldReadable,
        };
        Policy { platforms: self.platform.clone(), permissions, layers, flat: !self.skip_flat, podman, thin: None }
    }
}
