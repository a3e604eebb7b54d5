use super::*;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Answers by turns, and counts the pictures it was asked about.
struct Moody {
    asked: Arc<AtomicUsize>,
    answer: fn(usize) -> Result<Score, RewardError>,
    whole_groups: bool,
}

impl Reward for Moody {
    fn name(&self) -> &'static str {
        "moody"
    }

    fn needs(&self) -> Needs {
        Needs { whole_groups: self.whole_groups, ..Needs::default() }
    }

    fn score(&self, request: &Request<'_>) -> Vec<Result<Score, RewardError>> {
        request.images.iter().map(|_| (self.answer)(self.asked.fetch_add(1, Ordering::SeqCst))).collect()
    }
}

/// A reward over a journal, and the count of pictures it was asked about.
fn reward(journal: &Journal, answer: fn(usize) -> Result<Score, RewardError>) -> (Journaled, Arc<AtomicUsize>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let inner = Box::new(Moody { asked: Arc::clone(&asked), answer, whole_groups: false });
    (Journaled { inner, journal: journal.clone(), cache: None, log: Log::default() }, asked)
}

/// The scores of pictures of the given colors, all of one group.
fn scores(reward: &dyn Reward, colors: &[u8]) -> Vec<Result<Score, RewardError>> {
    let images: Vec<RgbImage> =
        colors.iter().map(|&color| RgbImage::from_pixel(2, 2, image::Rgb([color; 3]))).collect();
    let prompts: Vec<Arc<Prompt>> = colors.iter().map(|_| Arc::new("a".into())).collect();
    reward.score(&Request { images: &images, prompts: &prompts, latents: None, groups: &vec![0; colors.len()] })
}

fn opened(folder: &Path, epoch: u64) -> Journal {
    let journal = Journal::default();
    journal.open(folder, epoch).expect("opens");
    journal
}

/// A number whose decimals do not end, and parts.
#[expect(clippy::unnecessary_wraps, reason = "an answer among others")]
fn third(i: usize) -> Result<Score, RewardError> {
    let part = |name: &str, value| Part { name: name.into(), weight: 0.1, value };
    Ok(Score::sum(vec![part("x", i as f64 / 3.0), part("y", (i as f64).sqrt())]))
}

#[test]
fn a_resumed_run_asks_nobody_twice_and_hears_the_same_bits() {
    let folder = tempfile::tempdir().expect("a folder");
    let (first, asked) = reward(&opened(folder.path(), 4), third);
    let before = scores(&first, &[1, 2, 1]);
    // The same picture and prompt have one answer, the first.
    assert_eq!(before[0], before[2]);
    assert_eq!(asked.load(Ordering::SeqCst), 3);
    // A kill cuts the last line off.
    let path = folder.path().join("00004.jsonl");
    let bytes = fs::read(&path).expect("is there");
    fs::write(&path, [&bytes[..], b"{\"reward\":\"moo"].concat()).expect("writes");

    let (again, asked) = reward(&opened(folder.path(), 4), third);
    assert_eq!(scores(&again, &[2, 1]), [before[1].clone(), before[0].clone()]);
    assert_eq!(asked.load(Ordering::SeqCst), 0);
    // What is asked now comes after the last whole line.
    scores(&again, &[7]);
    let (third_time, asked) = reward(&opened(folder.path(), 4), third);
    scores(&third_time, &[1, 2, 7]);
    assert_eq!(asked.load(Ordering::SeqCst), 0);
}

#[test]
fn failures_are_answers_and_the_unreachable_is_told_as_often_as_it_was() {
    let folder = tempfile::tempdir().expect("a folder");
    let answer = |i| match i {
        0 => Err(RewardError::Failed("no face".into())),
        1 | 2 => Err(RewardError::Unavailable("away".into())),
        _ => Ok(9.0.into()),
    };
    let (first, asked) = reward(&opened(folder.path(), 0), answer);
    let failed = scores(&first, &[1]);
    assert_eq!(scores(&first, &[1]), failed);
    assert_eq!(scores(&first, &[2]), [Err(RewardError::Unavailable("away".into()))]);
    assert_eq!(scores(&first, &[2]), [Err(RewardError::Unavailable("away".into()))]);
    assert_eq!(asked.load(Ordering::SeqCst), 3);

    let (again, asked) = reward(&opened(folder.path(), 0), |_| Ok(9.0.into()));
    assert_eq!(scores(&again, &[1]), failed);
    for _ in 0..2 {
        assert_eq!(scores(&again, &[2]), [Err(RewardError::Unavailable("away".into()))]);
    }
    assert_eq!(asked.load(Ordering::SeqCst), 0);
    assert_eq!(scores(&again, &[2]), [Ok(9.0.into())]);
    // Waited for in the end: a run that is resumed has it at once.
    let (last, asked) = reward(&opened(folder.path(), 0), answer);
    assert_eq!(scores(&last, &[2]), [Ok(9.0.into())]);
    assert_eq!(asked.load(Ordering::SeqCst), 0);
}

#[test]
fn work_that_ends_without_an_answer_asks_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let journal = opened(folder.path(), 2);
    let (first, _) = reward(&journal, |i| if i == 0 { third(1) } else { Err(RewardError::Unavailable("away".into())) });
    let before = scores(&first, &[1, 2]);
    journal.forget_unavailable().expect("writes");
    let (again, asked) = reward(&opened(folder.path(), 2), |_| Ok(9.0.into()));
    assert_eq!(scores(&again, &[1, 2]), [before[0].clone(), Ok(9.0.into())]);
    assert_eq!(asked.load(Ordering::SeqCst), 1);
}

#[test]
fn a_journal_keeps_the_base_and_what_no_checkpoint_holds() {
    let folder = tempfile::tempdir().expect("a folder");
    let journal = opened(folder.path(), 0);
    let (first, asked) = reward(&journal, third);
    for epoch in 0..4 {
        journal.turn(epoch);
        scores(&first, &[epoch as u8]);
    }
    journal.forget_before(3).expect("deletes");
    scores(&first, &[0, 3]);
    assert_eq!(asked.load(Ordering::SeqCst), 4);
    // The run itself forgets what one that is resumed would not know.
    scores(&first, &[1]);
    assert_eq!(asked.load(Ordering::SeqCst), 5);
    let (again, asked) = reward(&opened(folder.path(), 3), third);
    scores(&again, &[0, 3, 1]);
    assert_eq!(asked.load(Ordering::SeqCst), 0);
    scores(&again, &[2]);
    assert_eq!(asked.load(Ordering::SeqCst), 1);
}

#[test]
fn groups_are_asked_about_whole() {
    let folder = tempfile::tempdir().expect("a folder");
    let asked = Arc::new(AtomicUsize::new(0));
    let inner = Box::new(Moody { asked: Arc::clone(&asked), answer: third, whole_groups: true });
    let reward = Journaled { inner, journal: opened(folder.path(), 0), cache: None, log: Log::default() };
    let before = scores(&reward, &[1, 2]);
    assert_eq!(scores(&reward, &[1, 2]), before);
    assert_eq!(asked.load(Ordering::SeqCst), 2);
    // In other company a picture is another question.
    scores(&reward, &[1, 3]);
    assert_eq!(asked.load(Ordering::SeqCst), 4);
}

#[test]
fn a_cache_outlives_the_run_and_keeps_no_failures() {
    let folder = tempfile::tempdir().expect("a folder");
    let cached = |description: &str, answer| {
        let cache = Cache::open(&folder.path().join("cache"), "moody", description).expect("opens");
        let (reward, asked) = reward(&Journal::default(), answer);
        (Journaled { cache: Some(cache), ..reward }, asked)
    };
    let answer = |i| if i == 1 { Err(RewardError::Failed("lost".into())) } else { third(i + 1) };
    let (first, _) = cached("kind = 1", answer);
    let before = scores(&first, &[1, 2]);
    let (again, asked) = cached("kind = 1", |_| Ok(5.0.into()));
    assert_eq!(scores(&again, &[1, 2]), [before[0].clone(), Ok(5.0.into())]);
    assert_eq!(asked.load(Ordering::SeqCst), 1);
    let (other, asked) = cached("kind = 2", third);
    scores(&other, &[1]);
    assert_eq!(asked.load(Ordering::SeqCst), 1);
}
