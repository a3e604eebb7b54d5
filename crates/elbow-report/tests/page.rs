//! Pages of runs of all kinds: what they say, that they parse without an error, and that nothing in a run becomes markup.

#![expect(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

mod common;

use common::{Fixture, score};
use elbow_report::{Report, ReportError};
use html5gum::{DefaultEmitter, Token, Tokenizer};
use std::{
    fs::{self, OpenOptions},
    io::Write,
    path::Path,
};

/// An element of a page: its name, its attributes, and the text below it.
struct Element {
    name: String,
    attributes: Vec<(String, String)>,
    text: String,
    marks: usize,
}

impl Element {
    fn attribute(&self, name: &str) -> Option<&str> {
        self.attributes.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    fn has_class(&self, class: &str) -> bool {
        self.attribute("class").is_some_and(|classes| classes.split(' ').any(|found| found == class))
    }
}

/// Elements that have no end.
const VOID: [&str; 5] = ["br", "img", "input", "link", "meta"];

/// All elements of a page, which must parse without an error, and in which what begins ends.
#[track_caller]
fn elements(page: &str) -> Vec<Element> {
    let words = |text: &[u8]| String::from_utf8(text.to_vec()).unwrap();
    let mut all: Vec<Element> = Vec::new();
    // The elements around the place that is read.
    let mut open: Vec<usize> = Vec::new();
    let mut emitter = DefaultEmitter::default();
    // Scripts and styles are no markup.
    emitter.naively_switch_states(true);
    for token in Tokenizer::new_with_emitter(page, emitter) {
        match token.unwrap() {
            Token::StartTag(tag) => {
                let attributes = tag.attributes.iter().map(|(name, value)| (words(name), words(value))).collect();
                let element = Element { name: words(&tag.name), attributes, text: String::new(), marks: 0 };
                if element.has_class("mark") {
                    for &around in &open {
                        all[around].marks += 1;
                    }
                }
                if !VOID.contains(&element.name.as_str()) {
                    open.push(all.len());
                }
                all.push(element);
            }
            Token::EndTag(tag) => {
                let ended = open.pop().map(|last| all[last].name.clone());
                assert_eq!(ended, Some(words(&tag.name)), "an end without a beginning");
            }
            Token::String(text) => {
                for &around in &open {
                    all[around].text += &words(&text);
                }
            }
            Token::Error(error) => panic!("{error:?}"),
            Token::Comment(_) | Token::Doctype(_) => {}
        }
    }
    assert!(open.is_empty());
    all
}

/// Parses a page and checks what holds for every one: no network, one script, figures that show something.
#[track_caller]
fn checked(page: &str) -> Vec<Element> {
    let all = elements(page);
    let named = |name: &str| all.iter().filter(|element| element.name == name).collect::<Vec<_>>();
    assert_eq!(named("script").len(), 1);
    let policy =
        named("meta").into_iter().find(|m| m.attribute("http-equiv") == Some("Content-Security-Policy")).unwrap();
    let policy = policy.attribute("content").unwrap();
    assert!(
        policy.starts_with("default-src 'none'; img-src data:;") && !policy.contains("script-src 'unsafe"),
        "{policy}"
    );
    for element in &all {
        for (name, value) in &element.attributes {
            assert!(!name.starts_with("on"), "{}: {name}", element.name);
            match name.as_str() {
                "src" => assert!(value.starts_with("data:image/png;base64,"), "{value}"),
                "href" => assert!(
                    value.starts_with('#') && all.iter().any(|e| e.attribute("id") == Some(&value[1..])),
                    "{value}"
                ),
                "style" => assert!(!value.contains("url("), "{value}"),
                _ => {}
            }
        }
    }
    for element in &all {
        if element.has_class("plot") {
            assert_eq!(element.attribute("role"), Some("img"));
            let label = element.attribute("aria-label").unwrap();
            assert!(!label.is_empty() && element.marks > 0, "nothing is drawn in {label:?}");
        }
        if element.name == "figure" && element.has_class("card") {
            assert!(element.marks > 0, "nothing is drawn in {:?}", element.text);
        }
        if element.name == "img" {
            assert!(element.attribute("alt").is_some());
        }
    }
    for number in ["NaN", "inf"] {
        let wrong = all
            .iter()
            .flat_map(|e| &e.attributes)
            .find(|(_, value)| value.split([' ', ',']).any(|part| part == number));
        assert!(wrong.is_none(), "{wrong:?}");
    }
    all
}

fn page(paths: &[impl AsRef<Path>]) -> String {
    Report::read(paths).unwrap().html()
}

/// What a reader reads, with simple spaces.
fn words(all: &[Element]) -> String {
    let body = all.iter().find(|element| element.name == "body").unwrap();
    body.text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The page of one fixture, checked, in words.
fn told(fixture: &Fixture) -> (String, Vec<Element>) {
    let root = tempfile::tempdir().unwrap();
    let all = checked(&page(&[fixture.write(root.path())]));
    (words(&all), all)
}

#[track_caller]
fn says(words: &str, parts: &[&str]) {
    for part in parts {
        assert!(words.contains(part), "{part:?} is not in\n{words}");
    }
}

#[test]
fn a_finished_run_says_what_happened_and_shows_all_of_it() {
    let (words, all) = told(&Fixture::default());
    says(
        &words,
        &[
            "The recipe nano-pepg trained the model for 10 epochs, on 240 pictures that it drew in 3 min 00 s.",
            "On prompts that it never trained on, the strict score rose from 0.300 to 0.900",
            "the judge, an independent detector, rose from 0.320 to 0.920.",
            "By the strict rule 0 of these 24 are right before, and 24 after",
            "Epoch 5 · 6 pictures",
            "Judge minus strict score",
            "Started with elbow train nano-pepg --set seed=0",
            "This run recorded no statistics of pictures",
        ],
    );
    let ids: Vec<&str> = all.iter().filter(|e| e.name == "section").filter_map(|e| e.attribute("id")).collect();
    assert_eq!(ids, ["curves", "pictures", "tasks", "gallery", "radar", "training", "recipe", "timing"]);
    // Against epochs, images and minutes, each for wide and for narrow pages.
    let switch = all.iter().find(|e| e.has_class("switch")).unwrap();
    assert_eq!(switch.text.matches("mean reward").count(), 2 * 3 * 2, "axis and description");
    // Tasks with the numbers of both ends.
    let bars: Vec<&Element> = all.iter().filter(|e| e.has_class("bars")).collect();
    assert_eq!((bars.len(), bars[0].marks), (3, 6));
    says(&bars[0].text, &["color attribution", "0.200", "0.800", "counting", "1.000", "mean"]);
    let widths: Vec<&str> =
        all.iter().filter(|e| e.has_class("bar")).take(2).filter_map(|e| e.attribute("style")).collect();
    assert!(widths[0].contains("width:20.00%") && widths[1].contains("width:80.00%"), "{widths:?}");
    assert_eq!(all.iter().filter(|e| e.name == "img").count(), 48 + 2 * 5);
}

#[test]
fn the_page_is_the_same_every_time() {
    let root = tempfile::tempdir().unwrap();
    let run = Fixture::default().write(root.path());
    assert_eq!(page(&[&run]), page(&[&run]));
}

#[test]
fn a_run_that_was_stopped_says_how_far_it_is() {
    let (words, _) = told(&Fixture { epochs: 7, of: 12, ..Fixture::default() });
    says(
        &words,
        &[
            "has trained the model for 7 of 12 epochs so far",
            "the strict score rose from 0.300 to 0.550",
            "of 12, not finished",
            "this one has none yet",
        ],
    );
}

#[test]
fn one_epoch_and_none_are_pages_too() {
    let (words, _) = told(&Fixture { epochs: 1, of: 12, eval_every: 0, ..Fixture::default() });
    says(
        &words,
        &["Its training reward stayed at 0.350", "It was not measured on held-out prompts after training yet."],
    );
    let (words, _) = told(&Fixture { epochs: 0, of: 12, ..Fixture::default() });
    says(
        &words,
        &["The base was measured, and nothing was trained yet", "The base scores 0.300", "there are no curves"],
    );
}

#[test]
fn a_run_without_any_evaluation_is_told_by_its_reward() {
    let (words, all) = told(&Fixture { measured: false, sheets: false, ..Fixture::default() });
    says(&words, &["Its training reward rose from 0.360 to", "No pictures were kept", "keep.pictures = true"]);
    assert!(!all.iter().any(|e| e.attribute("id") == Some("tasks")));
}

#[test]
fn an_evaluation_at_the_ends_alone_is_a_line_between_two_dots() {
    let (_, all) = told(&Fixture { eval_every: 0, ..Fixture::default() });
    let held_out = all.iter().find(|e| e.name == "figure" && e.text.starts_with("Scores on held-out prompts")).unwrap();
    // Three measures, wide and narrow: a line and two dots each.
    assert_eq!(held_out.marks, 2 * 3 * 3);
    says(&held_out.text, &["Measured at the ends alone"]);
}

/// Writes lines behind those of a run's record.
fn append(run: &Path, text: &str) {
    OpenOptions::new().append(true).open(run.join("metrics.jsonl")).unwrap().write_all(text.as_bytes()).unwrap();
}

#[test]
fn rewards_that_are_missing_leave_gaps_and_are_told() {
    let root = tempfile::tempdir().unwrap();
    let run = Fixture { epochs: 4, of: 12, eval_every: 0, ..Fixture::default() }.write(root.path());
    append(
        &run,
        "{\"epoch\":5,\"step\":5,\"reward_geneval\":null,\"reward_missing\":24,\"trained_samples\":0,\"policy_loss\":null}\n",
    );
    append(
        &run,
        "{\"epoch\":6,\"step\":6,\"reward_geneval\":0.5,\"reward_missing\":3,\"trained_samples\":21,\"policy_loss\":null}\n",
    );
    append(
        &run,
        "{\"epoch\":7,\"step\":7,\"reward_geneval\":0.6,\"reward_missing\":0,\"trained_samples\":24,\"policy_loss\":0.1}\n",
    );
    let all = checked(&page(&[&run]));
    says(
        &words(&all),
        &[
            "27 rewards are missing",
            "1 of 7 epochs have no reward at all: the curve has gaps there.",
            "1 of 7 epochs trained nothing",
            "1 of 7 epochs have a loss that is not a finite number.",
        ],
    );
    // Two pieces of both the raw and the averaged curve.
    let wide = all.iter().find(|e| e.has_class("plot") && e.has_class("wide")).unwrap();
    assert_eq!(wide.marks, 4);
}

#[test]
fn a_record_of_nothing_but_missing_rewards_is_a_page() {
    let root = tempfile::tempdir().unwrap();
    let run = Fixture { epochs: 0, of: 12, measured: false, ..Fixture::default() }.write(root.path());
    append(&run, "{\"epoch\":1,\"reward_geneval\":null}\n{\"epoch\":2,\"reward_geneval\":null}\n");
    says(&words(&checked(&page(&[&run]))), &["No epoch has a reward.", "2 of 2 epochs have no reward at all"]);
}

#[test]
fn damaged_lines_are_passed_over_and_told() {
    let root = tempfile::tempdir().unwrap();
    let run = Fixture { epochs: 6, of: 12, ..Fixture::default() }.write(root.path());
    append(&run, "{\"epoch\": 7, \"rew\n[1]\n{\"epoch\":8,\"reward_geneval\":0.8}\n{\"epoch\":9,\"reward_gen");
    let all = checked(&page(&[&run]));
    says(
        &words(&all),
        &[
            "metrics.jsonl is damaged in lines 8, 9",
            "The last line of metrics.jsonl is half written",
            "8 of 12 epochs so far",
        ],
    );
    for file in ["manifest.json", "result.json"] {
        fs::write(run.join(file), "{\"half\":").unwrap();
    }
    fs::write(run.join("samples/epoch-00005.jsonl"), "{\"half\":").unwrap();
    fs::write(run.join("images/epoch-00005.png"), "no picture").unwrap();
    fs::write(run.join("images/before-after.png"), "no picture").unwrap();
    let all = checked(&page(&[&run]));
    says(
        &words(&all),
        &["manifest.json cannot be read:", "result.json cannot be read:", "Cannot read the pictures of"],
    );
}

#[test]
fn nothing_of_a_run_becomes_markup() {
    let root = tempfile::tempdir().unwrap();
    let evil = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&";
    let fixture =
        Fixture { name: "a <b onclick=x>&amp; b".into(), prompt: evil.into(), pictures: true, ..Fixture::default() };
    let run = fixture.write(root.path());
    let record = serde_json::json!({
        "epoch": 11, "reward_geneval": 0.5, format!("reward_geneval_{evil}"): 0.5, format!("radar_{evil}"): 1, format!("diversity{evil}"): 2,
        format!("eval_reward_{evil}"): 0.5,
    });
    append(&run, &format!("{record}\n"));
    let config = fs::read_to_string(run.join("config.toml")).unwrap().replace("epochs = 10", "epochs = 11");
    fs::write(run.join("config.toml"), format!("{config}\n[extra]\nname = {}\n", serde_json::json!(evil))).unwrap();
    let manifest = serde_json::json!({ "cpu": evil, "arguments": ["train", evil, "--set", evil] });
    fs::write(run.join("manifest.json"), manifest.to_string()).unwrap();
    let result = serde_json::json!({ "base": { format!("eval_reward_{evil}"): 0.1 }, "tuned": { format!("eval_reward_{evil}"): 0.2 } });
    fs::write(run.join("result.json"), result.to_string()).unwrap();
    let alone = page(&[&run]);
    let other =
        Fixture { name: "b".into(), objective: "grpo", prompt: evil.into(), ..Fixture::default() }.write(root.path());
    for page in [alone, page(&[&run, &other])] {
        let all = checked(&page);
        assert!(all.iter().all(|e| e.name != "img" || e.attribute("src") != Some("x")));
        says(&words(&all), &["<script>alert(1)</script>", "a <b onclick=x>&amp; b"]);
    }
}

#[test]
fn ten_thousand_epochs_are_thinned() {
    let root = tempfile::tempdir().unwrap();
    let run =
        Fixture { epochs: 10_000, of: 10_000, eval_every: 100, sheets: false, ..Fixture::default() }.write(root.path());
    let page = page(&[&run]);
    let all = checked(&page);
    says(
        &words(&all),
        &["Long curves are thinned", "hours of drawing and training", "50 h 00 min", "240 000 pictures"],
    );
    let points = |e: &Element| e.attribute("points").map_or(0, |points| points.split(' ').count());
    let longest = all.iter().map(points).max().unwrap();
    assert!((250..=510).contains(&longest), "{longest}");
    assert!(page.len() < 1_000_000, "{} bytes", page.len());
}

#[test]
fn seeds_become_a_band_and_their_interval_is_the_closed_one() {
    let root = tempfile::tempdir().unwrap();
    let runs: Vec<_> = (0..3)
        .map(|seed| Fixture { name: format!("seed-{seed}"), seed, ..Fixture::default() }.write(root.path()))
        .collect();
    let all = checked(&page(&runs));
    // Scores a hundredth apart: s = 0.01, and t with two degrees of freedom is 0.95 √(2 / 0.0975).
    let half = 0.95 * (2.0f64 / 0.0975).sqrt() * 0.01 / 3.0f64.sqrt();
    let mean = score(1, 10, 10);
    says(
        &words(&all),
        &[
            "nano-pepg, 3 runs",
            &format!("rose from 0.300 to {mean:.3} ± {half:.3} (3 seeds)"),
            "95 % t interval of the mean over seeds",
            "seed-2",
        ],
    );
    let wide = all.iter().find(|e| e.has_class("plot") && e.has_class("wide")).unwrap();
    // Three thin lines, their mean and its band.
    assert_eq!(wide.marks, 5);
    assert!(all.iter().any(|e| e.has_class("whisker")));
}

#[test]
fn a_second_run_of_a_seed_does_not_narrow_an_interval() {
    let root = tempfile::tempdir().unwrap();
    let run = |name: &str, seed| Fixture { name: name.into(), seed, ..Fixture::default() }.write(root.path());
    let runs = [run("a", 1), run("b", 1), run("c", 2)];
    let words = words(&checked(&page(&runs)));
    says(&words, &["(2 seeds)", "have the same seed", "Of two seeds no band is drawn"]);
}

#[test]
fn recipes_are_compared_and_their_differences_listed() {
    let root = tempfile::tempdir().unwrap();
    let run = |name: &str, objective, seed, of| {
        Fixture { name: name.into(), objective, seed, epochs: 10, of, ..Fixture::default() }.write(root.path())
    };
    let runs = [run("a", "pepg", 1, 10), run("b", "grpo", 9, 10), run("c", "pepg", 2, 10), run("d", "nft", 1, 20)];
    let all = checked(&page(&runs));
    says(&words(&all), &["3 recipes compared", "4 runs of 3 recipes", "nano-grpo ends highest, at 0.990", "10 of 20"]);
    let table = all.iter().find(|e| e.has_class("differences")).unwrap();
    says(&table.text, &["objective.kind", "\"pepg\"", "\"grpo\"", "epochs", "20"]);
    assert!(!table.text.contains("seed") && !table.text.contains("batch"));
    let across = all.iter().find(|e| e.has_class("across")).unwrap();
    says(&across.text, &["base", "nano-pepg", "nano-grpo"]);
    let legend = all.iter().find(|e| e.has_class("legend")).unwrap();
    assert_eq!(legend.text, "nano-pepgnano-grponano-nft");
}

#[test]
fn large_pictures_do_not_make_a_large_page() {
    let root = tempfile::tempdir().unwrap();
    let run = Fixture { side: 192, pictures: true, epochs: 2, of: 2, ..Fixture::default() }.write(root.path());
    let page = page(&[&run]);
    let all = checked(&page);
    let pictures: Vec<&Element> = all.iter().filter(|e| e.name == "img").collect();
    assert_eq!(pictures.len(), 2 * 12 + 2 * 20);
    assert!(pictures.iter().all(|e| e.attribute("width") == Some("160")));
    // Noise is the worst that PNG can meet: 72 pictures at most, 103 kB each.
    assert!(page.len() < 8_000_000, "{} bytes", page.len());
}

#[test]
fn a_gallery_is_of_all_pictures_where_they_were_kept() {
    let (words, _) = told(&Fixture { pictures: true, ..Fixture::default() });
    says(
        &words,
        &["Chosen of all samples of the epoch", "Epoch 1 · 24 pictures", "Epoch 10 · 24 pictures", "upper quartile"],
    );
    let (words, _) = told(&Fixture::default());
    says(&words, &["cut from the sheets in images/", "With keep.pictures = true", "Epoch 10 · 6 pictures"]);
}

#[test]
fn what_a_radar_records_is_shown() {
    let root = tempfile::tempdir().unwrap();
    let run = Fixture { epochs: 2, of: 9, ..Fixture::default() }.write(root.path());
    for epoch in 3..6 {
        let record = serde_json::json!({ "epoch": epoch, "reward_geneval": 0.5, "radar_brightness": 0.1 * f64::from(epoch), "diversity": 0.2 });
        append(&run, &format!("{record}\n"));
    }
    let all = checked(&page(&[&run]));
    let titles: Vec<&str> = all.iter().filter(|e| e.name == "h3").map(|e| e.text.as_str()).collect();
    assert!(
        ["brightness", "diversity", "Distance from the base (KL)"].iter().all(|title| titles.contains(title)),
        "{titles:?}"
    );
    assert!(!words(&all).contains("recorded no statistics"));
}

#[test]
fn the_table_of_curves_is_the_record() {
    let root = tempfile::tempdir().unwrap();
    let run = Fixture { name: "a, \"b\"".into(), epochs: 3, of: 3, ..Fixture::default() }.write(root.path());
    append(&run, "{\"epoch\":4,\"step\":8,\"reward_geneval\":null}\n");
    let table = Report::read(&[run]).unwrap().csv().unwrap();
    let rows: Vec<&str> = table.lines().collect();
    assert_eq!(rows[0], "run,step,elapsed_hours,reward,reward_averaged");
    assert_eq!((rows.len(), rows[4]), (5, "\"a, \"\"b\"\"\",8,0.015000,,"));
    let second: Vec<f64> = rows[2].rsplit(',').take(4).map(|field| field.parse().unwrap()).collect();
    let [first, raw] = [1, 2].map(|epoch| score(0, epoch, 3));
    let expected = [(0.6 * first + raw) / 1.6, raw, 0.01, 4.0];
    assert!(second.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12), "{second:?}");
}

#[test]
fn what_is_no_run_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let none: [&Path; 0] = [];
    assert!(matches!(Report::read(&none), Err(ReportError::Nothing)));
    let error = Report::read(&[root.path()]).unwrap_err();
    assert!(error.to_string().contains("is not a run folder") && error.hint().is_some(), "{error}");
    let run = Fixture::default().write(root.path());
    assert!(matches!(Report::read(&[&run, &run]), Err(ReportError::Twice { .. })));
    fs::write(run.join("metrics.jsonl"), "").unwrap();
    assert!(matches!(Report::read(&[&run]), Err(ReportError::NoRecords { .. })));
    fs::write(run.join("config.toml"), "a = = b").unwrap();
    assert!(matches!(Report::read(&[&run]), Err(ReportError::Config { .. })));
}
