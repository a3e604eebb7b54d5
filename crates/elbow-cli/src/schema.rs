//! The fields of a recipe as data, read off the types: what a recipe is explained from.

use elbow::config::Config;
use elbow_run::recipe::Setting;
use schemars::{JsonSchema, schema_for};
use serde::Serialize;
use serde_json::Value;

/// A key of a section.
pub struct Field {
    /// The key.
    pub name: String,
    /// What it does; empty if nobody said.
    pub meaning: String,
    /// What holds where a recipe says nothing; `None` for sections, and for values that are absent or must be given.
    pub default: Option<Value>,
    /// Whether a recipe must give it.
    pub required: bool,
    /// What may stand there.
    pub shape: Shape,
}

/// What may stand behind a key.
pub enum Shape {
    /// One value.
    Value(Type),
    /// A section.
    Section(Vec<Field>),
    /// A section whose `kind` decides which other fields it has.
    Tagged {
        /// The kind where a recipe says nothing.
        default: Option<String>,
        /// What there is.
        variants: Vec<Variant>,
    },
}

/// One kind of a section.
pub struct Variant {
    /// Its name.
    pub kind: String,
    /// What it is.
    pub meaning: String,
    /// The fields beside `kind`.
    pub fields: Vec<Field>,
}

/// The type of a value.
pub enum Type {
    /// An integer that is not negative.
    Integer,
    /// Any number.
    Number,
    /// `true` or `false`.
    Boolean,
    /// A string.
    Text,
    /// An array of strings.
    Texts,
    /// An array of numbers.
    Numbers,
    /// An array of sections, which are checked when they are read.
    Sections,
    /// A section of one of the kinds that this field is within.
    Section,
    /// Names with a number each.
    NumbersByName,
    /// One of some strings, each with its meaning.
    OneOf(Vec<(String, String)>),
}

/// Every field of a recipe, in the order of the types.
pub fn fields() -> Vec<Field> {
    let mut all = of::<Config>();
    all.extend(of::<Setting>());
    all
}

fn of<T: JsonSchema + Default + Serialize>() -> Vec<Field> {
    let root = schema_for!(T).to_value();
    let defaults = serde_json::to_value(T::default()).expect("invariant: a recipe is plain data");
    section(&root, &root, &defaults, &[])
}

/// The definition a `$ref` points to, or the schema itself.
fn resolve<'a>(root: &'a Value, schema: &'a Value) -> &'a Value {
    let target = schema["$ref"].as_str().or_else(|| schema["allOf"][0]["$ref"].as_str());
    target.and_then(|path| root.pointer(path.trim_start_matches('#'))).unwrap_or(schema)
}

/// A description on one line, links of rustdoc as plain text.
fn sentence(schema: &Value) -> String {
    let text = schema["description"].as_str().unwrap_or("");
    text.split_whitespace().collect::<Vec<_>>().join(" ").replace("[`", "`").replace("`]", "`")
}

/// The fields of a section, which stands within those of the schemas `above`.
fn section(root: &Value, schema: &Value, defaults: &Value, above: &[&Value]) -> Vec<Field> {
    let required = |name: &str| schema["required"].as_array().is_some_and(|r| r.iter().any(|n| n == name));
    let properties = schema["properties"].as_object().into_iter().flatten();
    let field = |(name, schema): (&String, &Value)| {
        let target = resolve(root, schema);
        let default = defaults.get(name).or_else(|| schema.get("default")).filter(|d| !d.is_null());
        let shape = shape(root, target, default.unwrap_or(&Value::Null), above);
        let (own, general) = (sentence(schema), sentence(target));
        Field {
            name: name.clone(),
            meaning: if own.is_empty() { general } else { own },
            default: default.filter(|_| matches!(shape, Shape::Value(_))).cloned(),
            required: required(name) && default.is_none(),
            shape,
        }
    };
    properties.filter(|(name, schema)| *name != "kind" || schema["const"].is_null()).map(field).collect()
}

fn shape(root: &Value, schema: &Value, defaults: &Value, above: &[&Value]) -> Shape {
    if above.iter().any(|outer| std::ptr::eq(*outer, schema)) {
        return Shape::Value(Type::Section);
    }
    let within = [above, &[schema]].concat();
    let variants = schema["oneOf"].as_array().map_or(&[][..], Vec::as_slice);
    if variants.iter().any(|v| v["properties"]["kind"]["const"].is_string()) {
        let default = defaults["kind"].as_str().map(str::to_owned);
        return Shape::Tagged {
            default,
            variants: variants.iter().filter_map(|v| variant(root, v, defaults, &within)).collect(),
        };
    }
    if schema["properties"].is_object() {
        return Shape::Section(section(root, schema, defaults, &within));
    }
    Shape::Value(if variants.is_empty() { plain(root, schema) } else { one_of(variants) })
}

fn variant(root: &Value, schema: &Value, defaults: &Value, above: &[&Value]) -> Option<Variant> {
    let kind = schema["properties"]["kind"]["const"].as_str()?;
    let defaults = if defaults["kind"] == kind { defaults } else { &Value::Null };
    let inner = resolve(root, schema);
    let mut fields = section(root, schema, defaults, above);
    if !std::ptr::eq(inner, schema) {
        fields.extend(section(root, inner, defaults, above));
    }
    Some(Variant { kind: kind.to_owned(), meaning: sentence(schema), fields })
}

fn one_of(variants: &[Value]) -> Type {
    Type::OneOf(variants.iter().filter_map(|v| Some((v["const"].as_str()?.to_owned(), sentence(v)))).collect())
}

fn plain(root: &Value, schema: &Value) -> Type {
    let name = schema["type"].as_str().or_else(|| schema["type"][0].as_str());
    match name {
        Some("integer") => Type::Integer,
        Some("number") => Type::Number,
        Some("boolean") => Type::Boolean,
        Some("object") => Type::NumbersByName,
        Some("array") if resolve(root, &schema["items"])["type"] == "object" => Type::Sections,
        Some("array") if schema["items"]["type"] == "number" => Type::Numbers,
        Some("array") => Type::Texts,
        _ => Type::Text,
    }
}
