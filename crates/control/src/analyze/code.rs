//! The codes of findings. They are stable: scripts and suppressions name them.

use std::fmt;

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Something is not in force, or requests fail.
    Error,
    /// It is in force, and probably not as meant.
    Warning,
    /// Worth knowing.
    Info,
}

impl Level {
    pub const ALL: [Self; 3] = [Self::Error, Self::Warning, Self::Info];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Info => "info",
        }
    }

    /// The level of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|level| level.as_str() == name)
    }
}

macro_rules! codes {
    ($( $(#[$doc:meta])* $variant:ident = $code:literal, $level:ident, $remedy:literal; )*) => {
        /// What can be wrong.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Code { $( $(#[$doc])* $variant, )* }

        impl Code {
            /// Every code, in the order of documentation.
            pub const ALL: &'static [Code] = &[ $( Code::$variant, )* ];

            /// The stable, public name.
            pub fn as_str(self) -> &'static str {
                match self { $( Self::$variant => $code, )* }
            }

            /// How much it usually matters.
            pub fn level(self) -> Level {
                match self { $( Self::$variant => Level::$level, )* }
            }

            /// What to do about it, in a line.
            pub fn remedy(self) -> &'static str {
                match self { $( Self::$variant => $remedy, )* }
            }
        }
    };
}

codes! {
    /// The reader of the object has something against it.
    Object = "MESH100", Error, "correct the field; the last good version of the object stays in force";
    ParentMissing = "MESH101", Error, "name a Service and a port of it that exist in spec.parentRefs";
    BackendMissing = "MESH102", Error, "name a Service and a port of it that exist, or remove the reference";
    NotGranted = "MESH103", Error, "add a ReferenceGrant to the namespace of the Service";
    Shadowed = "MESH104", Warning, "remove the rule, or make its match more specific than the other";
    NeverMatches = "MESH105", Warning, "correct the conditions; no request can fulfil them";
    WeightsZero = "MESH106", Error, "give one of the backends a weight above 0";
    NoBackends = "MESH107", Error, "add a backend; naming the parent itself keeps its endpoints";
    OpaquePort = "MESH108", Error, "take the port out of the opaque ports, or use a TCPRoute";
    ProtocolConflict = "MESH109", Error, "correct the port's appProtocol, or use the other kind of route";
    SeveralKinds = "MESH110", Warning, "keep one kind of route for the port";
    Conflicting = "MESH111", Warning, "keep one of the policies, or make their targets differ";
    TargetMissing = "MESH112", Error, "name an object of the policy's own namespace that exists";
    NobodyLetIn = "MESH113", Warning, "add an AuthorizationPolicy that allows those who may";
    Misspelt = "MESH114", Warning, "write the name as it is meant";
    Misplaced = "MESH115", Warning, "move it to where it is read";
    NotIdempotent = "MESH116", Info, "name the methods in the rule's matches to have all of them retried";
    TimeoutsExclude = "MESH117", Warning, "leave room for another try, or do not ask for one";
    TooMany = "MESH118", Error, "join items, name networks or `*.` in their stead, or remove some";
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
