//! Pages in a real browser: no script error, every figure drawn, both themes, on a phone and on a desk, and on paper.
//!
//! `.ci/browser` installs Chromium with its driver and runs this. With `ELBOW_REPORT_SHOTS=FOLDER` screenshots of all that is looked at are
//! left there, and `ELBOW_REPORT_PAGES` names further pages, with `:` between them.

#![expect(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

mod common;

use base64::{Engine, engine::general_purpose::STANDARD};
use common::Fixture;
use elbow_report::Report;
use serde_json::{Value, json};
use std::{
    env, fs,
    io::{BufRead, BufReader, Lines},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
};

/// What must hold for a page, found out inside it: a list of what does not.
const CHECKS: &str = r#"
const wrong = [];
const rect = (e) => e.getBoundingClientRect();
const visible = (e) => e.checkVisibility() && rect(e).width > 0;
if (document.documentElement.scrollWidth > innerWidth) wrong.push(`the page is ${document.documentElement.scrollWidth} wide`);
for (const plot of [...document.querySelectorAll("svg.plot")].filter(visible)) {
  const name = plot.getAttribute("aria-label");
  const marks = [...plot.querySelectorAll(".mark")].filter((m) => rect(m).width + rect(m).height > 0);
  if (marks.length === 0) wrong.push(`no marks: ${name}`);
  const box = rect(plot);
  for (const mark of plot.querySelectorAll(".mark:not(.band)")) {
    const r = rect(mark);
    if (r.left < box.left - 1 || r.right > box.right + 1 || r.top < box.top - 1 || r.bottom > box.bottom + 1) wrong.push(`a mark outside: ${name}`);
  }
  for (const text of plot.querySelectorAll("text")) {
    const r = rect(text);
    if (r.left < box.left - 2 || r.right > box.right + 2) wrong.push(`"${text.textContent}" is cut off: ${name}`);
    if (r.height < 9.5) wrong.push(`"${text.textContent}" is ${r.height} high: ${name}`);
  }
  const ticks = [...plot.querySelectorAll("text.tick[text-anchor=middle]")].map(rect);
  for (let i = 1; i < ticks.length; i++) if (ticks[i].left < ticks[i - 1].right + 2) wrong.push(`ticks overlap: ${name}`);
}
const figures = [...document.querySelectorAll("figure.card")].filter(visible);
if (figures.length === 0) wrong.push("no figures");
for (const figure of figures) {
  if (![...figure.querySelectorAll(".mark")].some(visible)) wrong.push(`an empty figure: ${figure.querySelector("h3").textContent}`);
}
for (const image of document.images) if (!image.complete || image.naturalWidth === 0) wrong.push(`a broken picture: ${image.alt}`);
if (performance.getEntriesByType("resource").length > 0) wrong.push("something was loaded");

const numbers = (color) => color.match(/[\d.]+/g).map(Number);
const light = (color) => {
  const [r, g, b] = numbers(color).map((n) => n / 255).map((n) => (n <= 0.04045 ? n / 12.92 : ((n + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const behind = (e) => {
  for (; e; e = e.parentElement) {
    const color = getComputedStyle(e).backgroundColor;
    if (numbers(color)[3] !== 0) return color;
  }
  return "rgb(255,255,255)";
};
for (const text of [...document.querySelectorAll("h1,h2,h3,p,figcaption,td,th,dd,dt,summary,nav a,label,.plot text")].filter(visible)) {
  const style = getComputedStyle(text);
  const [a, b] = [light(text instanceof SVGElement ? style.fill : style.color), light(behind(text))];
  const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  if (contrast < 4.5) wrong.push(`contrast ${contrast.toFixed(2)}: ${text.textContent.slice(0, 40)}`);
}
const dark = matchMedia("(prefers-color-scheme: dark)").matches;
if (dark !== light(behind(document.body)) < 0.2) wrong.push("the page has the other theme");
return wrong;
"#;

/// Moves the pointer over the middle of the first plot, and says what is shown.
const HOVER: &str = r#"
const plot = [...document.querySelectorAll("svg.plot")].find((e) => e.checkVisibility());
const box = plot.getBoundingClientRect();
const at = { clientX: box.left + box.width / 2, clientY: box.top + box.height / 2, bubbles: true };
plot.dispatchEvent(new PointerEvent("pointermove", at));
const tip = document.getElementById("tip");
const shown = tip.hidden ? "" : tip.innerText;
plot.dispatchEvent(new PointerEvent("pointerleave", at));
return [shown, tip.hidden, plot.querySelector(".cursor") === null];
"#;

/// Chooses each axis in turn, and says what is written below the curve then.
const SWITCH: &str = r#"
const labels = [...document.querySelector(".switch").querySelectorAll("label")];
const seen = labels.map((label) => {
  label.click();
  const plot = [...label.parentElement.querySelectorAll("svg.plot")].filter((e) => e.checkVisibility());
  return plot.length === 1 ? plot[0].dataset.unit : `${plot.length} plots`;
});
labels[0].click();
return seen;
"#;

/// What curves are drawn against on a page about runs, and on one about a study.
const RUNS: [&str; 3] = ["epoch", "images drawn", "minutes of drawing and training"];
const STUDY: [&str; 4] =
    ["images drawn", "evaluations of the network", "seconds on an idle machine, as counted", "epoch"];

/// A Chromium without a window, by its driver.
struct Browser {
    driver: Child,
    /// Kept open: the driver may have more to say.
    _said: Lines<BufReader<ChildStdout>>,
    session: String,
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = ureq::delete(&self.session).call();
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}

impl Browser {
    fn start() -> Self {
        let mut driver = Command::new("chromedriver")
            .arg("--port=0")
            .stdout(Stdio::piped())
            .spawn()
            .expect("chromedriver: see .ci/browser");
        let mut said = BufReader::new(driver.stdout.take().unwrap()).lines();
        let port = said
            .by_ref()
            .map(Result::unwrap)
            .find_map(|line| {
                line.split("started successfully on port ").nth(1)?.trim_end_matches('.').parse::<u16>().ok()
            })
            .expect("the driver says its port");
        let mut browser = Self { driver, _said: said, session: format!("http://127.0.0.1:{port}/session") };
        let options =
            json!({ "args": ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--hide-scrollbars"] });
        let wanted = json!({ "goog:chromeOptions": options, "goog:loggingPrefs": { "browser": "ALL" } });
        let session = browser.post("", &json!({ "capabilities": { "alwaysMatch": wanted } }));
        browser.session = format!("{}/{}", browser.session, session["sessionId"].as_str().unwrap());
        browser
    }

    fn post(&self, path: &str, body: &Value) -> Value {
        let mut answer = ureq::post(format!("{}{path}", self.session))
            .config()
            .http_status_as_error(false)
            .build()
            .content_type("application/json")
            .send(body.to_string())
            .unwrap();
        let text = answer.body_mut().with_config().limit(1 << 30).read_to_string().unwrap();
        assert!(answer.status().is_success(), "{path}: {text}");
        serde_json::from_str::<Value>(&text).unwrap()["value"].clone()
    }

    fn command(&self, name: &str, parameters: Value) -> Value {
        self.post("/goog/cdp/execute", &json!({ "cmd": name, "params": parameters }))
    }

    fn run(&self, script: &str) -> Value {
        self.post("/execute/sync", &json!({ "script": script, "args": [] }))
    }

    fn open(&self, page: &Path, width: u32, theme: &str) {
        let phone = width < 500;
        let size =
            json!({ "width": width, "height": 900, "deviceScaleFactor": if phone { 2 } else { 1 }, "mobile": phone });
        self.command("Emulation.setDeviceMetricsOverride", size);
        let features = json!([{ "name": "prefers-color-scheme", "value": theme }]);
        self.command("Emulation.setEmulatedMedia", json!({ "features": features }));
        self.post("/url", &json!({ "url": format!("file://{}", page.display()) }));
    }

    /// What scripts and the page's policy complained of.
    fn complaints(&self) -> Vec<Value> {
        self.post("/se/log", &json!({ "type": "browser" })).as_array().unwrap().clone()
    }

    fn shot(&self, path: &Path, width: u32) {
        let height = self.run("return document.documentElement.scrollHeight");
        let clip = json!({ "x": 0, "y": 0, "width": width, "height": height, "scale": 1 });
        let shot = self.command("Page.captureScreenshot", json!({ "captureBeyondViewport": true, "clip": clip }));
        fs::write(path, STANDARD.decode(shot["data"].as_str().unwrap()).unwrap()).unwrap();
    }
}

/// Pages of fixtures, and those that the environment names.
fn pages(root: &Path) -> Vec<(String, PathBuf)> {
    let fixture = |name: &str, objective, seed, epochs| Fixture {
        name: name.into(),
        objective,
        seed,
        epochs,
        pictures: true,
        ..Fixture::default()
    };
    let whole = fixture("whole", "pepg", 0, 10).write(root);
    let seeds =
        [1, 2, 3].map(|seed| fixture(&format!("seed-{seed}"), "a-rather-long-name-of-a-recipe", seed, 10).write(root));
    let stopped = fixture("stopped", "nft", 1, 7).write(root);
    let many: Vec<&PathBuf> = [&whole].into_iter().chain(&seeds).chain([&stopped]).collect();
    let alone = [vec![&whole], vec![&stopped], seeds.iter().collect(), many];
    let mut pages: Vec<(String, PathBuf)> = ["whole", "stopped", "seeds", "many"]
        .into_iter()
        .zip(alone)
        .map(|(name, runs)| {
            let path = root.join(format!("{name}.html"));
            fs::write(&path, Report::read(&runs).unwrap().html()).unwrap();
            (name.to_owned(), path)
        })
        .collect();
    let named = env::var("ELBOW_REPORT_PAGES").unwrap_or_default();
    pages.extend(
        named
            .split(':')
            .filter(|path| !path.is_empty())
            .enumerate()
            .map(|(number, path)| (format!("given-{number}"), fs::canonicalize(path).unwrap())),
    );
    pages
}

#[test]
#[ignore = "needs Chromium and its driver, which .ci/browser installs"]
fn pages_are_whole_in_both_themes_on_a_phone_and_on_a_desk() {
    let root = tempfile::tempdir().unwrap();
    let browser = Browser::start();
    let shots = env::var_os("ELBOW_REPORT_SHOTS").map(PathBuf::from);
    for (name, page) in pages(root.path()) {
        for theme in ["light", "dark"] {
            for width in [390, 820, 1280] {
                let place = format!("{name}, {theme}, {width} pixels");
                browser.open(&page, width, theme);
                assert_eq!(browser.run("return innerWidth"), width, "{place}");
                assert_eq!(browser.run(CHECKS), json!([]), "{place}");
                let axes = match browser.run("return document.querySelector('.eyebrow').textContent").as_str() {
                    Some("Elbow study") => json!(STUDY),
                    _ => json!(RUNS),
                };
                let hovered = browser.run(HOVER);
                let shown = hovered[0].as_str().unwrap();
                assert!(
                    shown.starts_with(axes[0].as_str().unwrap()) && shown.lines().count() > 1,
                    "{place}: {shown:?}"
                );
                assert_eq!((&hovered[1], &hovered[2]), (&json!(true), &json!(true)), "{place}: it goes away");
                assert_eq!(browser.run(SWITCH), axes, "{place}");
                assert_eq!(browser.complaints(), Vec::<Value>::new(), "{place}");
                if let Some(shots) = &shots {
                    browser.shot(&shots.join(format!("{name}-{theme}-{width}.png")), width);
                }
            }
        }
        let paper = browser.post("/print", &json!({}));
        let paper = STANDARD.decode(paper.as_str().unwrap()).unwrap();
        assert!(paper.starts_with(b"%PDF"), "{name}");
        if let Some(shots) = &shots {
            fs::write(shots.join(format!("{name}.pdf")), paper).unwrap();
        }
    }
}

#[test]
#[ignore = "needs Chromium and its driver, which .ci/browser installs"]
fn a_page_may_ask_no_network_and_run_no_other_script() {
    let root = tempfile::tempdir().unwrap();
    let browser = Browser::start();
    let run = Fixture::default().write(root.path());
    let page = root.path().join("page.html");
    fs::write(&page, Report::read(&[run]).unwrap().html()).unwrap();
    browser.open(&page, 1280, "light");
    for (attempt, directive) in [
        ("fetch('http://127.0.0.1:9/').catch(() => {})", "connect-src"),
        ("document.body.append(Object.assign(new Image(), { src: 'http://127.0.0.1:9/a.png' }))", "img-src"),
        (
            "document.body.append(Object.assign(document.createElement('script'), { textContent: 'document.title = 1' }))",
            "script-src-elem",
        ),
    ] {
        let script = format!(
            "const done = arguments[0]; document.addEventListener('securitypolicyviolation', (e) => done(e.effectiveDirective), {{ once: true }}); {attempt};"
        );
        assert_eq!(browser.post("/execute/async", &json!({ "script": script, "args": [] })), directive, "{attempt}");
    }
}
