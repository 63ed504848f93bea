//! A master key in a token: a smartcard, or whatever else speaks PKCS#11 (feature `token`).
//!
//! ```text
//! module ─► token ─► log in ─► RSA key that may sign ─► PKCS#1 padding around a text, as a key file signs it
//! ```
//!
//! The private half never leaves the token. Each signature is verified before anybody gets it. Logging in with a wrong PIN is
//! what locks tokens, so it is tried once, and not at all when one more failure would lock it.
//!
//! Source: `cvmfs/server/cvmfs_server_masterkeycard.sh`.

use std::fmt;
use std::path::PathBuf;

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error as TokenError, RvError};
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, AttributeType, CertificateType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::{Session, UserType};
use cryptoki::slot::Slot;
use cryptoki::types::AuthPin;

use super::keys::{Certificate, PrivateKey, PublicKey, SignRaw};
use crate::error::{Error, Result};
use crate::path::RepositoryName;

/// The PIN of cards that nobody gave another one. Source: `masterkeycard_sign`.
pub const DEFAULT_PIN: &str = "123456";
/// The number of the place for signatures in PIV cards, 9c: where the reference keeps the key.
const PLACE: u8 = 2;
/// Name of what we store.
const LABEL: &str = "CernVM-FS master key";

/// Which token, and how to log in.
#[derive(Clone)]
pub struct TokenSettings {
    /// The library that speaks with it, such as `opensc-pkcs11.so`.
    pub module: PathBuf,
    /// Its label; needed only if there are several.
    pub label: Option<String>,
    /// The user's PIN.
    pub pin: String,
    /// Whether nobody is there who could have mistyped the PIN: then a token where somebody did is left alone.
    pub is_unattended: bool,
}

impl fmt::Debug for TokenSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenSettings")
            .field("module", &self.module)
            .field("label", &self.label)
            .finish_non_exhaustive()
    }
}

/// A token.
pub struct Token {
    /// Ends before the library does.
    session: Option<Session>,
    library: Option<Pkcs11>,
    slot: Option<Slot>,
    name: String,
    pin: AuthPin,
    is_unattended: bool,
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token({})", self.name)
    }
}

impl Drop for Token {
    fn drop(&mut self) {
        drop(self.session.take());
        // Nobody can be told; the process may open it again all the same.
        if let Some(library) = self.library.take() {
            drop(library.finalize());
        }
    }
}

impl Token {
    /// Opens the only token, or the one of that label, and logs in.
    ///
    /// # Errors
    /// Those of [`find`](Self::find) and [`log_in`](Self::log_in).
    pub fn open(settings: &TokenSettings) -> Result<Self> {
        let mut token = Self::find(settings)?;
        token.log_in()?;
        Ok(token)
    }

    /// Finds the only token, or the one of that label.
    ///
    /// # Errors
    /// `NotFound` if there is no such token; `InvalidInput` if there are several; `Unavailable` if the library or the token does
    /// not work.
    pub fn find(settings: &TokenSettings) -> Result<Self> {
        let module = settings.module.display().to_string();
        let library = Pkcs11::new(&settings.module).map_err(|error| failed(&module, &error))?;
        match library.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)) {
            Ok(()) | Err(TokenError::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => {}
            Err(error) => return Err(failed(&module, &error)),
        }
        // From here on the library is finalized whatever happens.
        let pin = AuthPin::new(settings.pin.clone().into());
        let mut token = Self {
            session: None,
            library: Some(library.clone()),
            slot: None,
            name: module.clone(),
            pin,
            is_unattended: settings.is_unattended,
        };
        let slots = library.get_slots_with_initialized_token().map_err(|error| failed(&module, &error))?;
        let mut found = Vec::new();
        for slot in slots {
            let info = library.get_token_info(slot).map_err(|error| failed(&module, &error))?;
            if settings.label.as_ref().is_none_or(|label| info.label() == label) {
                found.push((slot, info));
            }
        }
        let (slot, info) = match (found.pop(), found.is_empty()) {
            (Some(only), true) => only,
            (None, _) => return Err(Error::not_found(format!("{module}: a token"))),
            (Some(_), false) => return Err(Error::invalid(module, "there are several tokens: say which by its label")),
        };
        token.name = format!("token {:?}", info.label());
        token.session = Some(library.open_rw_session(slot).map_err(|error| failed(&token.name, &error))?);
        token.slot = Some(slot);
        Ok(token)
    }

    /// Logs in.
    ///
    /// # Errors
    /// `Refused` for a wrong PIN, or if one more would lock the token; `Unavailable` if the token does not work.
    pub fn log_in(&mut self) -> Result<()> {
        let (Some(library), Some(slot)) = (&self.library, self.slot) else { return Ok(()) };
        let info = library.get_token_info(slot).map_err(|error| self.failed(&error))?;
        let refused = |reason: &str| Err(Error::Refused { what: self.name.clone(), reason: reason.to_owned() });
        if info.user_pin_locked() {
            return refused("the PIN is locked");
        }
        if info.user_pin_final_try() {
            return refused("one more wrong PIN would lock it; log in with another program first");
        }
        if self.is_unattended && info.user_pin_count_low() {
            return refused("a wrong PIN was used last; sign once by hand");
        }
        match self.session()?.login(UserType::User, Some(&self.pin)) {
            Ok(()) | Err(TokenError::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => Ok(()),
            Err(TokenError::Pkcs11(RvError::PinIncorrect, _)) => refused("the PIN is wrong"),
            Err(error) => Err(self.failed(&error)),
        }
    }

    /// Its label.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The key whose public half is one of `wanted`; without any, the one in the place of the reference, or the only one.
    ///
    /// # Errors
    /// `NotFound` if there is no such key.
    pub fn key(&self, wanted: &[PublicKey]) -> Result<TokenKey<'_>> {
        let template =
            [Attribute::Class(ObjectClass::PRIVATE_KEY), Attribute::KeyType(KeyType::RSA), Attribute::Sign(true)];
        let mut keys = Vec::new();
        for handle in self.objects(&template)? {
            let types = [
                AttributeType::Modulus,
                AttributeType::PublicExponent,
                AttributeType::Id,
                AttributeType::AlwaysAuthenticate,
            ];
            let (mut modulus, mut exponent, mut is_in_place, mut always) = (Vec::new(), Vec::new(), false, false);
            for attribute in self.session()?.get_attributes(handle, &types).map_err(|error| self.failed(&error))? {
                match attribute {
                    Attribute::Modulus(bytes) => modulus = bytes,
                    Attribute::PublicExponent(bytes) => exponent = bytes,
                    Attribute::Id(id) => is_in_place = id == [PLACE],
                    Attribute::AlwaysAuthenticate(flag) => always = flag,
                    _ => {}
                }
            }
            let public = PublicKey::from_numbers(&modulus, &exponent)?;
            keys.push((is_in_place, TokenKey { token: self, handle, public, logs_in_each_time: always }));
        }
        let is_wanted = |key: &TokenKey<'_>| wanted.iter().any(|wanted| wanted.is_same(&key.public));
        if wanted.is_empty() {
            let place = keys.iter().position(|(is_in_place, _)| *is_in_place).unwrap_or(0);
            let is_clear = keys.len() == 1 || keys.get(place).is_some_and(|(is_in_place, _)| *is_in_place);
            if is_clear {
                return Ok(keys.swap_remove(place).1);
            }
        } else if let Some((_, key)) = keys.into_iter().find(|(_, key)| is_wanted(key)) {
            return Ok(key);
        }
        let which = if wanted.is_empty() { "an RSA key for signatures" } else { "the master key of the repository" };
        Err(Error::not_found(format!("{}: {which}", self.name)))
    }

    /// Stores a key with its public half, and a certificate that tools find it by. What is in its place goes, when all of
    /// that is in the token.
    ///
    /// # Errors
    /// `Unavailable` if the token does not take keys from outside, or not beside those that it has.
    pub fn store(&self, key: &PrivateKey, name: &RepositoryName) -> Result<()> {
        let before = self.in_place()?;
        let numbers = key.numbers()?;
        let common = |class| {
            let label = Attribute::Label(LABEL.into());
            vec![Attribute::Class(class), Attribute::Token(true), Attribute::Id(vec![PLACE]), label]
        };
        let rsa = [Attribute::KeyType(KeyType::RSA), Attribute::Modulus(numbers.modulus.clone())];
        let exponent = Attribute::PublicExponent(numbers.public_exponent.clone());
        let [prime1, prime2] = numbers.primes.clone();
        let [exponent1, exponent2] = numbers.exponents.clone();
        let secret = [
            Attribute::Private(true),
            Attribute::Sensitive(true),
            Attribute::Extractable(false),
            Attribute::Sign(true),
            exponent.clone(),
            Attribute::PrivateExponent(numbers.private_exponent.clone()),
            Attribute::Prime1(prime1),
            Attribute::Prime2(prime2),
            Attribute::Exponent1(exponent1),
            Attribute::Exponent2(exponent2),
            Attribute::Coefficient(numbers.coefficient.clone()),
        ];
        let public = [Attribute::Private(false), Attribute::Verify(true), exponent];
        let (certificate, subject) = Certificate::create(name, key)?.der_and_subject()?;
        let certificate = [
            Attribute::Private(false),
            Attribute::CertificateType(CertificateType::X_509),
            Attribute::Subject(subject),
            Attribute::Value(certificate),
        ];
        let objects = [
            [common(ObjectClass::PRIVATE_KEY), rsa.to_vec(), secret.to_vec()].concat(),
            [common(ObjectClass::PUBLIC_KEY), rsa.to_vec(), public.to_vec()].concat(),
            [common(ObjectClass::CERTIFICATE), certificate.to_vec()].concat(),
        ];
        let mut created = Vec::new();
        let result = objects.iter().try_for_each(|object| {
            created.push(self.session()?.create_object(object).map_err(|error| self.failed(&error))?);
            Ok(())
        });
        // Some tokens have one place only, and give what they overwrote out as what is new.
        let (leaving, staying) = if result.is_ok() { (&before, &created) } else { (&created, &before) };
        let destroyed = self.destroy(leaving.iter().filter(|object| !staying.contains(object)));
        result.and(destroyed)
    }

    /// Removes key and certificate from the place of the reference; returns whether there was something.
    pub fn remove(&self) -> Result<bool> {
        let objects = self.in_place()?;
        self.destroy(&objects)?;
        Ok(!objects.is_empty())
    }

    /// Certificate and key in the place of the reference, the private key last.
    fn in_place(&self) -> Result<Vec<ObjectHandle>> {
        let mut found = Vec::new();
        for class in [ObjectClass::CERTIFICATE, ObjectClass::PUBLIC_KEY, ObjectClass::PRIVATE_KEY] {
            found.extend(self.objects(&[Attribute::Class(class), Attribute::Id(vec![PLACE])])?);
        }
        Ok(found)
    }

    fn destroy<'a>(&self, objects: impl IntoIterator<Item = &'a ObjectHandle>) -> Result<()> {
        objects
            .into_iter()
            .try_for_each(|handle| self.session()?.destroy_object(*handle).map_err(|error| self.failed(&error)))
    }

    fn objects(&self, template: &[Attribute]) -> Result<Vec<ObjectHandle>> {
        self.session()?.find_objects(template).map_err(|error| self.failed(&error))
    }

    fn session(&self) -> Result<&Session> {
        self.session.as_ref().ok_or_else(|| Error::not_found(format!("{}: a session", self.name)))
    }

    fn failed(&self, error: &TokenError) -> Error {
        failed(&self.name, error)
    }
}

fn failed(what: &str, error: &TokenError) -> Error {
    Error::Unavailable { what: what.to_owned(), reason: error.to_string() }
}

/// A key in a token.
#[derive(Debug)]
pub struct TokenKey<'a> {
    token: &'a Token,
    handle: ObjectHandle,
    public: PublicKey,
    /// Each signature takes the PIN again.
    logs_in_each_time: bool,
}

impl TokenKey<'_> {
    /// The public half.
    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    fn sign(&self, text: &[u8]) -> cryptoki::error::Result<Vec<u8>> {
        let Some(session) = &self.token.session else { return Err(TokenError::NotSupported) };
        if !self.logs_in_each_time {
            return session.sign(&Mechanism::RsaPkcs, self.handle, text);
        }
        session.sign_init(&Mechanism::RsaPkcs, self.handle)?;
        session.login(UserType::ContextSpecific, Some(&self.token.pin))?;
        session.sign_update(text)?;
        session.sign_final()
    }
}

impl SignRaw for TokenKey<'_> {
    fn sign_raw(&self, text: &[u8]) -> Result<Vec<u8>> {
        let signature = self.sign(text).map_err(|error| self.token.failed(&error))?;
        // Upstream: cards are not always right.
        if !self.public.verifies_raw(text, &signature) {
            let reason = "its signature is wrong".to_owned();
            return Err(Error::Unavailable { what: self.token.name.clone(), reason });
        }
        Ok(signature)
    }
}
