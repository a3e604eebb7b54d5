//! A run on a whole screen.
//!
//! ```text
//! recipe · run folder                                  epoch n of N
//! time so far, time left
//! phase  ━━━━━━━━━━━━━━
//! the chosen curve, large                              latest numbers
//! the main curves, small
//! messages
//! pictures
//! keys
//! ```
//!
//! A lower screen shows less: messages go first, then the large curve. A narrower one shows no table.

use super::curves::{Board, Series, held_out, sparklines, training};
use crate::numbers::{duration, short};
use elbow_report::averaged;
use ratatui::{
    Frame,
    crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers},
    layout::{Constraint, Layout, Rect},
    style::{Color, Modifier, Style},
    symbols::Marker,
    text::{Line, Span},
    widgets::{Axis, Block, Borders, Chart, Dataset, GraphType, LineGauge, Paragraph},
};
use std::time::Instant;

/// From this height on there are messages.
const TALL: u16 = 12;

/// What lies between head and messages has a large curve from this height on.
const ROOMY: u16 = 12;

/// From this width on there is a table.
const WIDE: u16 = 60;

/// Width of the table.
const TABLE: u16 = 34;

const RAW: Style = Style::new().fg(Color::DarkGray);
const BOLD: Style = Style::new().fg(Color::Cyan).add_modifier(Modifier::BOLD);
const DOTS: Style = Style::new().fg(Color::Yellow);
const WARNING: Style = Style::new().fg(Color::Yellow);
const CHOSEN: Style = Style::new().add_modifier(Modifier::REVERSED);
const FAINT: Style = Style::new().fg(Color::DarkGray);

/// What a key asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Press {
    /// To stop, as Ctrl-C does.
    Stop,
    /// The next curve.
    Next,
    /// The one before.
    Previous,
}

/// What a key asks for, if anything.
pub fn press(key: KeyEvent) -> Option<Press> {
    if key.kind == KeyEventKind::Release {
        return None;
    }
    let control = key.modifiers.contains(KeyModifiers::CONTROL);
    match key.code {
        KeyCode::Char('c') if control => Some(Press::Stop),
        KeyCode::Char('q' | 'Q') if !control => Some(Press::Stop),
        KeyCode::Tab | KeyCode::Right | KeyCode::Down => Some(Press::Next),
        KeyCode::BackTab | KeyCode::Left | KeyCode::Up => Some(Press::Previous),
        _ => None,
    }
}

/// Which curve is large: the training reward until another is chosen.
#[derive(Debug, Default)]
pub struct Choice(Option<String>);

impl Choice {
    /// Chooses the next curve or the one before; after the last comes the first.
    pub fn turn(&mut self, board: &Board, forward: bool) {
        let all = board.all();
        if all.is_empty() {
            return;
        }
        let step = if forward { 1 } else { all.len() - 1 };
        self.0 = Some(all[(self.index(board, &all) + step) % all.len()].name.clone());
    }

    fn name(&self, board: &Board) -> String {
        self.0.clone().unwrap_or_else(|| training(&board.reward))
    }

    fn index(&self, board: &Board, all: &[&Series]) -> usize {
        let name = self.name(board);
        all.iter().position(|series| series.name == name).unwrap_or(0)
    }
}

/// Draws all of it.
pub fn draw(frame: &mut Frame<'_>, board: &Board, choice: &Choice, now: Instant) {
    let area = frame.area();
    let tall = area.height >= TALL;
    let told = if tall { (area.height / 6).min(7) } else { 0 };
    let rows = [
        Constraint::Length(if tall { 2 } else { 1 }),
        Constraint::Length(1),
        Constraint::Fill(1),
        Constraint::Length(told),
        Constraint::Length(u16::from(tall)),
        Constraint::Length(1),
    ];
    let [head, phase, body, messages, pictures, foot] = Layout::vertical(rows).areas(area);
    draw_head(frame, head, board, now);
    draw_phase(frame, phase, board);
    draw_body(frame, body, board, choice);
    draw_messages(frame, messages, board);
    let path = board.pictures.as_deref().unwrap_or("–");
    frame.render_widget(Line::from(vec![Span::styled("pictures  ", FAINT), Span::raw(path)]), pictures);
    draw_foot(frame, foot);
}

fn draw_head(frame: &mut Frame<'_>, area: Rect, board: &Board, now: Instant) {
    let epoch = match board.epochs {
        0 => "loading".to_owned(),
        epochs => format!("epoch {} of {epochs}", board.epoch),
    };
    let so_far = duration(now.saturating_duration_since(board.start).as_secs_f64());
    let times = match board.left(now) {
        Some(left) if board.epoch < board.epochs => {
            format!("{so_far} so far, about {} left", duration(left.as_secs_f64()))
        }
        _ => format!("{so_far} so far"),
    };
    let epoch = Line::styled(epoch, BOLD);
    if area.height < 2 {
        let [left, right] = beside_each_other(area, epoch.width());
        frame.render_widget(epoch, left);
        frame.render_widget(Line::raw(times), right);
        return;
    }
    let [first, second] = Layout::vertical([Constraint::Length(1); 2]).areas(area);
    frame.render_widget(Line::styled(board.recipe.as_str(), Modifier::BOLD).left_aligned(), first);
    let [left, right] = beside_each_other(second, epoch.width());
    frame.render_widget(epoch, left);
    frame.render_widget(Line::raw(times), right);
    let room = first.width.saturating_sub(board.recipe.chars().count() as u16 + 2);
    let folder = Rect { x: first.right() - room, width: room, ..first };
    frame.render_widget(Line::styled(board.folder.as_str(), FAINT).right_aligned(), folder);
}

/// A part of a width, a space, and the rest.
fn beside_each_other(area: Rect, width: usize) -> [Rect; 2] {
    Layout::horizontal([Constraint::Length(width as u16), Constraint::Fill(1)]).spacing(2).areas(area)
}

fn draw_phase(frame: &mut Frame<'_>, area: Rect, board: &Board) {
    let Some((name, done, total)) = board.phase else { return };
    let label = format!("{name} {done}/{total}");
    if area.width < TABLE {
        return frame.render_widget(Line::raw(label), area);
    }
    let share = if total == 0 { 1.0 } else { (done as f64 / total as f64).clamp(0.0, 1.0) };
    let bar = LineGauge::default()
        .label(format!("{label:<22}"))
        .ratio(share)
        .filled_symbol("━")
        .unfilled_symbol("─")
        .filled_style(BOLD)
        .unfilled_style(FAINT);
    frame.render_widget(bar, area);
}

fn draw_body(frame: &mut Frame<'_>, area: Rect, board: &Board, choice: &Choice) {
    let wide = area.width >= WIDE;
    let columns = [Constraint::Fill(1), Constraint::Length(if wide { TABLE } else { 0 })];
    let [left, right] = Layout::horizontal(columns).spacing(u16::from(wide)).areas(area);
    let mut main: Vec<&Series> = board.main().collect();
    let name = choice.name(board);
    let small = if left.height < ROOMY { left.height } else { (main.len() as u16 + 1).min(left.height / 2) };
    if left.height < ROOMY && main.iter().all(|series| series.name != name) {
        // It is to be seen somewhere.
        main.splice(0..0, board.series(&name));
    }
    let [chart, lines] = Layout::vertical([Constraint::Fill(1), Constraint::Length(small)]).areas(left);
    draw_chart(frame, chart, board, &name);
    let place = if chart.is_empty() { lines } else { titled(frame, lines, Line::styled("main curves", FAINT)) };
    let lines = sparklines(&main, place.width.into()).into_iter().zip(&main);
    let lines: Vec<Line<'_>> =
        lines.map(|(line, series)| Line::styled(line, if series.name == name { BOLD } else { Style::new() })).collect();
    frame.render_widget(Paragraph::new(lines), place);
    draw_table(frame, right, board, choice);
}

/// Draws a rule with a title at the top of an area, and returns what is below.
fn titled(frame: &mut Frame<'_>, area: Rect, title: Line<'_>) -> Rect {
    let block = Block::new().borders(Borders::TOP).border_style(FAINT).title(title);
    let inner = block.inner(area);
    frame.render_widget(block, area);
    inner
}

fn draw_chart(frame: &mut Frame<'_>, area: Rect, board: &Board, name: &str) {
    if area.is_empty() {
        return;
    }
    let Some(series) = board.series(name) else {
        titled(frame, area, Line::styled("no epoch has ended yet", FAINT));
        return;
    };
    let raw = points(series, &series.values());
    let mean = points(series, &averaged(&series.values()));
    let scores = name.strip_prefix("reward_").and_then(|reward| board.series(&held_out(reward)));
    let dots = scores.map(|series| points(series, &series.values())).unwrap_or_default();
    let number = |points: &[(f64, f64)]| points.last().map_or_else(|| "–".into(), |(_, value)| short(*value));
    let mut title = vec![
        Span::styled(name.to_owned(), Modifier::BOLD),
        Span::styled(format!(" {}", number(&raw)), RAW),
        Span::styled(format!("  averaged {}", number(&mean)), BOLD),
    ];
    if !dots.is_empty() {
        let words = if area.width < WIDE { "" } else { "held-out " };
        title.push(Span::styled(format!("  • {words}{}", number(&dots)), DOTS));
    }
    let place = titled(frame, area, Line::from(title));
    let (low, high) = range(raw.iter().chain(&dots).map(|(_, value)| *value));
    let (first, last) = epochs(raw.iter().chain(&dots).map(|(epoch, _)| *epoch));
    let data =
        |points, marker, kind, style| Dataset::default().marker(marker).graph_type(kind).style(style).data(points);
    let curves = vec![
        data(&raw, Marker::Braille, GraphType::Line, RAW),
        data(&mean, Marker::Braille, GraphType::Line, BOLD),
        data(&dots, Marker::Dot, GraphType::Scatter, DOTS),
    ];
    let axis =
        |low: f64, high: f64, labels: Vec<String>| Axis::default().bounds([low, high]).labels(labels).style(FAINT);
    let chart = Chart::new(curves)
        .x_axis(axis(first, last, vec![format!("{first:.0}"), format!("epoch {last:.0}")]))
        .y_axis(axis(low, high, [low, f64::midpoint(low, high), high].map(short).to_vec()))
        .legend_position(None);
    frame.render_widget(chart, place);
}

/// Epochs and finite values.
fn points(series: &Series, values: &[Option<f64>]) -> Vec<(f64, f64)> {
    series.points.iter().zip(values).filter_map(|((epoch, _), value)| Some((*epoch as f64, (*value)?))).collect()
}

/// The smallest and the largest value, if there is one.
fn extremes(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    values.fold(None, |seen, value| {
        let (low, high) = seen.unwrap_or((value, value));
        Some((low.min(value), high.max(value)))
    })
}

/// The bounds of the axis of epochs.
fn epochs(values: impl Iterator<Item = f64>) -> (f64, f64) {
    match extremes(values) {
        None => (0.0, 1.0),
        Some((first, last)) if first < last => (first, last),
        Some((only, _)) => (only, only + 1.0),
    }
}

/// The bounds of the axis of values, with a margin.
fn range(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let Some((low, high)) = extremes(values) else { return (0.0, 1.0) };
    let margin = match high - low {
        0.0 if low == 0.0 => 1.0,
        0.0 => low.abs() / 2.0,
        reach => reach / 20.0,
    };
    (low - margin, high + margin)
}

fn draw_table(frame: &mut Frame<'_>, area: Rect, board: &Board, choice: &Choice) {
    if area.is_empty() {
        return;
    }
    let place = titled(frame, area, Line::styled("latest numbers", FAINT));
    let all = board.all();
    // The chosen row stays in sight.
    let above = (choice.index(board, &all) + 1).saturating_sub(place.height.into());
    let width = usize::from(place.width);
    let name = choice.name(board);
    let rows = all.iter().skip(above).take(place.height.into()).map(|series| {
        let number = series.latest();
        let room = width.saturating_sub(number.chars().count() + 1);
        let key: String = series.name.chars().take(room).collect();
        Line::styled(format!("{key:<room$} {number}"), if series.name == name { CHOSEN } else { Style::new() })
    });
    frame.render_widget(Paragraph::new(rows.collect::<Vec<_>>()), place);
}

fn draw_messages(frame: &mut Frame<'_>, area: Rect, board: &Board) {
    if area.is_empty() {
        return;
    }
    let place = titled(frame, area, Line::styled("messages", FAINT));
    let (width, height) = (usize::from(place.width).max(1), usize::from(place.height));
    let mut rows: Vec<Line<'_>> = Vec::new();
    for message in &board.messages {
        let style = if message.starts_with("warning: ") { WARNING } else { Style::new() };
        let letters: Vec<char> = message.trim().chars().collect();
        rows.extend(letters.chunks(width).map(|part| Line::styled(part.iter().collect::<String>(), style)));
    }
    let last = rows.split_off(rows.len().saturating_sub(height));
    frame.render_widget(Paragraph::new(last), place);
}

fn draw_foot(frame: &mut Frame<'_>, area: Rect) {
    let keys = if area.width < WIDE {
        "q: stop  Tab: curve"
    } else {
        "q: finish this epoch, save and stop (again: at once)   Tab, arrows: other curve"
    };
    frame.render_widget(Line::styled(keys, CHOSEN), area);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::live::curves::Start;
    use elbow_run::Event;
    use ratatui::{Terminal, backend::TestBackend};
    use serde_json::json;
    use std::{
        path::{Path, PathBuf},
        time::Duration,
    };

    fn board() -> Board {
        let mut board = Board::new("nano-geneval");
        let mut records = vec![json!({"epoch": 0, "eval_reward_geneval": 0.25, "eval_reward_judge": 0.2})];
        for epoch in 1..=20 {
            let mut record = json!({"epoch": epoch, "reward_geneval": f64::from(epoch) / 20.0, "zero_std_ratio": 0.5});
            record["kl_loss"] = if epoch == 5 { f64::NAN.into() } else { 0.0125.into() };
            record["grad_norm"] = 1.5.into();
            if epoch == 10 {
                record["eval_reward_geneval"] = 0.75.into();
            }
            records.push(record);
        }
        board.begin(&Start {
            folder: Path::new("runs/nano-geneval-1"),
            epoch: 20,
            epochs: 60,
            reward: "geneval",
            measures: &["geneval".into(), "judge".into()],
            records: &records.iter().map(|record| record.as_object().unwrap().clone()).collect::<Vec<_>>(),
            pictures: Some(PathBuf::from("runs/nano-geneval-1/images/epoch-00020.png")),
        });
        board.event(Event::Progress { phase: "rollout", done: 120, total: 480 });
        board.event(Event::Warning { text: "look\u{1b}[2J here" });
        board
    }

    /// The rows of a screen.
    fn drawn(board: &Board, choice: &Choice, width: u16, height: u16) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        let now = board.start + Duration::from_secs(65);
        terminal.draw(|frame| draw(frame, board, choice, now)).unwrap();
        let cells = terminal.backend().buffer().content();
        cells
            .chunks(usize::from(width).max(1))
            .map(|row| row.iter().map(ratatui::buffer::Cell::symbol).collect())
            .collect()
    }

    #[track_caller]
    fn has(rows: &[String], parts: &[&str]) {
        for part in parts {
            assert!(rows.iter().any(|row| row.contains(part)), "{part:?} is not in\n{}", rows.join("\n"));
        }
    }

    #[test]
    fn a_usual_terminal_shows_all() {
        for (width, height) in [(80, 24), (120, 40)] {
            let rows = drawn(&board(), &Choice::default(), width, height);
            let head = ["nano-geneval  ", "  runs/nano-geneval-1", "epoch 20 of 60  1 min 05 s so far"];
            has(&rows, &head);
            has(&rows, &["rollout 120/480", "━─", "reward_geneval 1.000  averaged 0.9", "•", "epoch 20"]);
            has(&rows, &["eval_reward_judge ", "kl_loss ", "zero_std_ratio ", "grad_norm ", "1.500", "█", "▁"]);
            has(&rows, &["warning: look [2J here", "pictures  runs/nano-geneval-1/images/epoch-00020.png"]);
            has(&rows, &["q: finish this epoch, save and stop", "Tab, arrows: other curve"]);
            assert!(rows.concat().chars().filter(|c| ('\u{2801}'..='\u{28ff}').contains(c)).count() > 10, "no curve");
        }
    }

    #[test]
    fn a_tiny_terminal_shows_what_matters() {
        let mut choice = Choice::default();
        choice.turn(&board(), false);
        has(&drawn(&board(), &choice, 20, 5), &["grad_norm  1.500"]);
        let rows = drawn(&board(), &Choice::default(), 20, 5);
        has(&rows, &["epoch 20 of 60", "rollout 120/480", "reward_gen 1.000", "q: stop  Tab: curve"]);
    }

    #[test]
    fn no_size_is_too_small() {
        for width in (0..30).chain([59, 60, 61, 200]) {
            for height in (0..16).chain([60]) {
                drawn(&board(), &Choice::default(), width, height);
                drawn(&Board::new("a recipe"), &Choice::default(), width, height);
            }
        }
    }

    #[test]
    fn a_run_that_is_loaded_says_so() {
        let mut board = Board::new("nano-geneval");
        board.event(Event::Progress { phase: "encoding prompts", done: 3, total: 8 });
        has(
            &drawn(&board, &Choice::default(), 80, 24),
            &["nano-geneval", "loading  ", "encoding prompts 3/8", "no epoch has ended yet", "pictures  –"],
        );
    }

    #[test]
    fn curves_are_chosen_in_a_ring() {
        let board = board();
        let mut choice = Choice::default();
        choice.turn(&board, true);
        assert_eq!(choice.name(&board), "eval_reward_geneval");
        has(&drawn(&board, &choice, 120, 40), &["eval_reward_geneval 0.750  averaged 0."]);
        choice.turn(&board, false);
        choice.turn(&board, false);
        assert_eq!(choice.name(&board), "grad_norm");
        has(&drawn(&board, &choice, 80, 24), &["grad_norm 1.500", "2.250", "0.750"]);
        choice.turn(&board, true);
        assert_eq!(choice.name(&board), "reward_geneval");
        Choice::default().turn(&Board::new("a recipe"), true);
    }

    #[test]
    fn keys_ask_for_what_the_foot_says() {
        let plain = |code| press(KeyEvent::new(code, KeyModifiers::NONE));
        let control = |letter| press(KeyEvent::new(KeyCode::Char(letter), KeyModifiers::CONTROL));
        assert_eq!([plain(KeyCode::Char('q')), control('c')], [Some(Press::Stop); 2]);
        assert_eq!([KeyCode::Tab, KeyCode::Right, KeyCode::Down].map(plain), [Some(Press::Next); 3]);
        assert_eq!([KeyCode::BackTab, KeyCode::Left, KeyCode::Up].map(plain), [Some(Press::Previous); 3]);
        assert_eq!([plain(KeyCode::Char('c')), control('q'), plain(KeyCode::Esc)], [None; 3]);
        let release = KeyEvent { kind: KeyEventKind::Release, ..KeyEvent::from(KeyCode::Char('q')) };
        assert_eq!(press(release), None);
    }

    #[test]
    fn axes_have_room_for_any_values() {
        let range = |values: &[f64]| range(values.iter().copied());
        assert_eq!([range(&[]), range(&[0.0]), range(&[-4.0, -4.0])], [(0.0, 1.0), (-1.0, 1.0), (-6.0, -2.0)]);
        assert_eq!(range(&[0.0, 20.0]), (-1.0, 21.0));
    }
}
