//! The conformance suite for stores of boards.

use std::sync::Arc;

use btcr2_aggregation_actors::{
    standing::boards::{BoardStore, MemoryBoards},
    state::{State, boards::StateBoards},
};
use btcr2_aggregation_protocol::{
    hash::{DocumentHash, sha256},
    id::CohortId,
};
use tempfile::TempDir;

fn cohort(name: &str) -> CohortId {
    name.parse().unwrap()
}

fn board(content: &str) -> (DocumentHash, Arc<Vec<u8>>) {
    (DocumentHash::from_bytes(sha256(content.as_bytes())), Arc::new(content.as_bytes().to_vec()))
}

async fn put(boards: &dyn BoardStore, of: &str, number: u64, content: &str) -> DocumentHash {
    let (hash, bytes) = board(content);
    boards.put(&cohort(of), number, &hash, bytes).await.unwrap();
    hash
}

async fn numbers(boards: &dyn BoardStore, of: &str, after: u64, most: usize) -> Vec<u64> {
    boards.list(&cohort(of), after, most).await.unwrap().into_iter().map(|(number, _)| number).collect()
}

async fn conforms(boards: &dyn BoardStore) {
    let unknown = board("unknown").0;
    assert_eq!(boards.get(&unknown).await.unwrap(), None);
    assert!(numbers(boards, "a", 0, 9).await.is_empty());
    // The bytes are read back, also those of an empty board.
    let hash = put(boards, "a", 1, "one").await;
    assert_eq!(boards.get(&hash).await.unwrap().unwrap().as_slice(), b"one");
    let empty = put(boards, "empty", 1, "").await;
    assert_eq!(boards.get(&empty).await.unwrap().unwrap().as_slice(), b"");
    // A board that is there stays as it is, and is listed once.
    boards.put(&cohort("a"), 1, &hash, Arc::new(b"other".to_vec())).await.unwrap();
    assert_eq!(boards.get(&hash).await.unwrap().unwrap().as_slice(), b"one");
    assert_eq!(numbers(boards, "a", 0, 9).await, [1]);
    // The same bytes in two numbers and two cohorts; two boards of one number; in the order of numbers, not of calls or digits.
    put(boards, "b", 7, "one").await;
    for number in [256, 3, 255] {
        put(boards, "a", number, &format!("board {number}")).await;
    }
    put(boards, "a", 3, "closed again").await;
    assert_eq!(numbers(boards, "a", 0, 9).await, [1, 3, 3, 255, 256]);
    assert_eq!(numbers(boards, "b", 0, 9).await, [7]);
    // The beginning of another name is another cohort.
    assert!(numbers(boards, "ab", 0, 9).await.is_empty());
    // Pages: above a number, not from it on.
    assert_eq!(numbers(boards, "a", 0, 2).await, [1, 3]);
    assert_eq!(numbers(boards, "a", 3, 9).await, [255, 256]);
    assert!(numbers(boards, "a", 256, 9).await.is_empty());
    assert!(numbers(boards, "a", u64::MAX, 9).await.is_empty());
}

#[actix_rt::test]
async fn boards_in_memory_conform() {
    conforms(&MemoryBoards::default()).await;
}

#[actix_rt::test]
async fn boards_in_a_state_directory_conform_and_remain() {
    let dir = TempDir::new().unwrap();
    let state = State::open(dir.path()).unwrap();
    conforms(&StateBoards::new(&state)).await;
    drop(state);
    let boards = StateBoards::new(&State::open(dir.path()).unwrap());
    assert_eq!(numbers(&boards, "a", 0, 9).await, [1, 3, 3, 255, 256]);
    assert_eq!(boards.get(&board("one").0).await.unwrap().unwrap().as_slice(), b"one");
}
