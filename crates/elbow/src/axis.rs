//! What the folders of variants have in common: one line a variant.

/// Declares the variants of an axis, one line each: a file `<module>.rs` with a struct that is read from the recipe and that
/// implements the axis's trait. Makes the enum that serde reads by its `kind`, which is the struct's name in kebab case.
macro_rules! axis {
    (
        $(#[$meta:meta])*
        $kind:ident: $axis:ident, default $default:ident;
        $($(#[$doc:meta])* $module:ident::$variant:ident,)+
    ) => {
        $(
            mod $module;
            pub use $module::$variant;
        )+

        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
        #[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
        pub enum $kind {
            $($(#[$doc])* $variant($variant),)+
        }

        impl Default for $kind {
            fn default() -> Self {
                Self::$default($default::default())
            }
        }

        impl $kind {
            /// The variant, to be used where it is.
            pub fn get(&self) -> &dyn $axis {
                match self {
                    $(Self::$variant(variant) => variant,)+
                }
            }

            /// The variant on its own.
            pub fn build(&self) -> Box<dyn $axis> {
                match self {
                    $(Self::$variant(variant) => Box::new(variant.clone()),)+
                }
            }
        }

        $(
            impl From<$variant> for $kind {
                fn from(variant: $variant) -> Self {
                    Self::$variant(variant)
                }
            }
        )+
    };
}

pub(crate) use axis;
