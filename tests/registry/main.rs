//! `edgectl image` against a real registry on loopback, filled by skopeo and umoci with images made of Debian packages
//! (tests/images/make), and judged by those tools. Needs root, for owners, devices and overlays.

mod lab;
mod pull;
mod transfer;
