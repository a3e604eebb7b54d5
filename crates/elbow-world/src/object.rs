//! What a scene can hold: 16 objects, six colors, and their names.

use elbow_rewards::geneval::Record;

/// An object class. The names are COCO's, as GenEval uses them (`airplane` … `wine glass`); the order is that of the atlas.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "the names are the objects")]
pub enum Object {
    Airplane,
    Apple,
    Bicycle,
    Bird,
    Boat,
    Car,
    Carrot,
    Cat,
    Chair,
    Clock,
    Elephant,
    Giraffe,
    Pizza,
    Tv,
    Umbrella,
    WineGlass,
}

impl Object {
    /// Every object, in atlas order.
    pub const ALL: [Self; 16] = [
        Self::Airplane,
        Self::Apple,
        Self::Bicycle,
        Self::Bird,
        Self::Boat,
        Self::Car,
        Self::Carrot,
        Self::Cat,
        Self::Chair,
        Self::Clock,
        Self::Elephant,
        Self::Giraffe,
        Self::Pizza,
        Self::Tv,
        Self::Umbrella,
        Self::WineGlass,
    ];

    /// The name in prompts and detections.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Airplane => "airplane",
            Self::Apple => "apple",
            Self::Bicycle => "bicycle",
            Self::Bird => "bird",
            Self::Boat => "boat",
            Self::Car => "car",
            Self::Carrot => "carrot",
            Self::Cat => "cat",
            Self::Chair => "chair",
            Self::Clock => "clock",
            Self::Elephant => "elephant",
            Self::Giraffe => "giraffe",
            Self::Pizza => "pizza",
            Self::Tv => "tv",
            Self::Umbrella => "umbrella",
            Self::WineGlass => "wine glass",
        }
    }

    /// The plural of the counting prompts.
    pub fn plural(self) -> String {
        let ending = if self == Self::WineGlass { "es" } else { "s" };
        format!("{}{ending}", self.name())
    }

    /// The object of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|o| o.name() == name)
    }
}

/// A color a sprite can be tinted in: six of GenEval's ten, those that stay apart at 14 px.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "the names are the colors")]
pub enum Color {
    Red,
    Yellow,
    Green,
    Blue,
    Purple,
    Black,
}

impl Color {
    /// Every color.
    pub const ALL: [Self; 6] = [Self::Red, Self::Yellow, Self::Green, Self::Blue, Self::Purple, Self::Black];

    /// The name in prompts and detections.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Red => "red",
            Self::Yellow => "yellow",
            Self::Green => "green",
            Self::Blue => "blue",
            Self::Purple => "purple",
            Self::Black => "black",
        }
    }

    /// The color of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|c| c.name() == name)
    }

    /// Darkest and lightest shade of a tinted sprite, RGB in 0..=255.
    pub const fn shades(self) -> [[f32; 3]; 2] {
        match self {
            Self::Red => [[140.0, 8.0, 22.0], [255.0, 96.0, 100.0]],
            Self::Yellow => [[220.0, 168.0, 0.0], [255.0, 232.0, 110.0]],
            Self::Green => [[14.0, 92.0, 30.0], [116.0, 212.0, 104.0]],
            Self::Blue => [[12.0, 60.0, 160.0], [98.0, 178.0, 255.0]],
            Self::Purple => [[84.0, 20.0, 132.0], [204.0, 124.0, 240.0]],
            Self::Black => [[8.0, 8.0, 12.0], [112.0, 112.0, 118.0]],
        }
    }
}

/// A class or a color that no scene has.
pub(crate) fn never_found(record: &Record) -> Option<String> {
    let (included, excluded) = (record.include.iter().map(|c| &c.class), record.exclude.iter().map(|c| &c.class));
    let known = |names: &[&str]| names.join(", ");
    if let Some(class) = included.chain(excluded).find(|class| Object::from_name(class).is_none()) {
        let names = known(&Object::ALL.map(Object::name));
        return Some(format!("the detector knows no class {class:?}; it knows {names}"));
    }
    let color =
        record.include.iter().filter_map(|clause| clause.color.as_ref()).find(|c| Color::from_name(c).is_none())?;
    Some(format!("the detector knows no color {color:?}; it knows {}", known(&Color::ALL.map(Color::name))))
}
