//! How many messages a second go from publishers through the broker to 1 and to 8 subscribers, on one topic
//! and on many, every process for itself, encrypted on both hops, nothing lost; beside libzmq doing the same.
//!
//! `cargo bench -p interlock-benches --bench throughput`
//! `[-- --sizes 16,128 --subscribers 1,8 --topics 1 --publishers 1 --rounds 3 --window-ms 1000 --only interlock --record NAME]`

use interlock_benches::{
    arguments::Arguments,
    bus,
    flow::{self, Cell, Side},
    libzmq::Libzmq,
    report::Report,
};

const CHOICES: [&str; 4] = ["sizes", "subscribers", "topics", "publishers"];

fn main() {
    let arguments = Arguments::read(&["sizes", "subscribers", "rounds", "only"]);
    match arguments.text("role") {
        None => run(&arguments),
        Some("broker") => bus::broker(&arguments),
        Some("publisher") => flow::publisher(&arguments),
        Some("subscriber") => flow::subscriber(&arguments),
        Some(other) => panic!("`{other}` is no role of this bench"),
    }
}

fn run(arguments: &Arguments) {
    let mut report = Report::begin("throughput");
    let libzmq = Libzmq::beside(arguments, &mut report);
    let lead = "payload | subscribers | topics | publishers";
    report.line(&format!("\n| {lead} | {}\n|{}", flow::COLUMNS, "---|".repeat(11)));
    let times = arguments.times(400, 1000);
    for cell in cells(arguments) {
        let (mut ours, mut theirs) = (Side::default(), Side::default());
        for _ in 0..arguments.value("rounds", 3) {
            if arguments.wants("interlock") {
                ours.add(&cell.interlock_window(&times));
            }
            if let Some(libzmq) = &libzmq {
                theirs.add(&cell.libzmq_window(libzmq, &times));
            }
        }
        let Cell { bytes, subscribers, topics, publishers } = cell;
        let columns = flow::columns(&ours, &theirs);
        report.line(&format!("| {bytes} | {subscribers} | {topics} | {publishers} | {columns}"));
    }
    report.keep(arguments.text("record"));
}

/// All combinations of what was chosen; without a choice also what one topic and one publisher hide.
fn cells(arguments: &Arguments) -> Vec<Cell> {
    let mut cells = Vec::new();
    let [sizes, subscribers, topics, publishers] = CHOICES;
    for bytes in arguments.list(sizes, &[16, 128, 1024, 16_384, 262_144]) {
        for subscribers in arguments.list(subscribers, &[1, 8]) {
            for topics in arguments.list(topics, &[1]) {
                for publishers in arguments.list(publishers, &[1]) {
                    cells.push(Cell { bytes, subscribers, topics, publishers });
                }
            }
        }
    }
    if CHOICES.iter().all(|choice| arguments.text(choice).is_none()) {
        for (topics, publishers) in [(1000, 1), (1, 8), (1000, 8)] {
            cells.push(Cell { bytes: 128, subscribers: 1, topics, publishers });
        }
    }
    cells
}
