//! Random names: UIDs of objects and the suffixes of generated names. Randomness comes from the kernel alone.

/// The alphabet of Kubernetes' generated names: no vowels and no look-alikes, so that no word comes of it.
/// k8s.io/apimachinery/pkg/util/rand.
const SUFFIX_ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";

/// A version 4 UUID (RFC 9562), as in `metadata.uid`.
pub fn uid() -> String {
    let mut bytes: [u8; 16] = random();
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

/// Five characters, as `generateName` appends them.
pub fn suffix() -> String {
    random::<5>().iter().map(|byte| SUFFIX_ALPHABET[*byte as usize % SUFFIX_ALPHABET.len()] as char).collect()
}

/// `N` bytes from the kernel's random number generator, getrandom(2).
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("getrandom(2) cannot fail once the kernel has booted");
    bytes
}
