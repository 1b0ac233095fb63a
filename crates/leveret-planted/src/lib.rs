//! Bugs that a build for tests can be made to have, one at a time: `cargo xtask planted` shows that each is found.
//!
//! Owns: which there are, and which one a process has. Must not know: where they are, and what finds them.
//! Invariant: without the feature `on` and debug assertions, [`planted`] is a constant, and no bug is in the program. So a
//! release has none, whatever features it is built with.
//!
//! Where a bug is, one line asks for it beside the right code:
//!
//! ```text
//! if !planted(Bug::NoDirectorySync) {
//!     disk.sync_directory()?;
//! }
//! ```

use std::fmt;

/// The variable that says by its name which bug a process has.
pub const VARIABLE: &str = "LEVERET_PLANTED";

macro_rules! bugs {
    ($($bug:ident $name:literal $what:literal,)*) => {
        /// Something that a programmer could do wrong.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Bug {
            $(#[doc = $what] $bug,)*
        }

        impl Bug {
            /// All there are.
            pub const ALL: &[Bug] = &[$(Bug::$bug,)*];

            /// How it is called.
            pub fn name(self) -> &'static str {
                match self {
                    $(Bug::$bug => $name,)*
                }
            }

            /// What is wrong.
            pub fn what(self) -> &'static str {
                match self {
                    $(Bug::$bug => $what,)*
                }
            }
        }
    };
}

bugs! {
    // The journal.
    ConfirmBeforeSync "confirm-before-sync" "A batch counts as durable when it is written, and is never synced.",
    NoDirectorySync "no-directory-sync" "The folder is not synced when a segment got its name.",
    TornBatchTaken "torn-batch-taken" "A start takes a batch whose header is whole without looking at the rest.",
    ChecksumNotChecked "checksum-not-checked-on-read" "A record is handed out without a look at its checksum.",
    FullDiskTakenForWritten "full-disk-taken-for-written" "A batch that the disk had no room for counts as written.",
    FailedSyncTriedAgain "failed-sync-tried-again" "A sync that failed is tried again, and believed.",
    FailedFolderSyncForgotten "failed-folder-sync-forgotten" "A folder that could not be synced is trusted the next time.",
    LivingSegmentReused "living-segment-reused" "A segment becomes a spare though messages live in it.",
    AcksReused "acks-reused" "A segment becomes a spare as no message lives in it, though a start needs its acks.",
    ReusedBeforeSync "reused-before-sync" "A segment is written over before it is durable that it is none any more.",
    ReplayNotSynced "replay-not-synced" "The header that says where a start begins is not synced, and what lies before is reused.",
    ReplayBeginsTooLate "replay-begins-too-late" "A start begins where the last stream needs it, not the first.",
    // What is told when.
    ConfirmBeforeDurable "confirm-before-durable" "A publish is confirmed before its change is durable.",
    ConfirmForgotten "confirm-forgotten" "A publish is never confirmed if the one before it waits for the journal.",
    RefusalConfirmed "refusal-confirmed" "A publish that a full queue refuses is confirmed.",
    AnswerOvertakes "answer-overtakes" "An answer overtakes what waits for the journal on its channel.",
    DeliveryBeforeGrant "delivery-before-grant" "A message is handed out before its grant is durable.",
    AckNotAwaited "ack-not-awaited" "An answer does not wait for the acks before it to be durable.",
    BodyTooLong "body-too-long" "A body may be longer than its header says.",
    RoomAsAnnounced "room-as-announced" "A message has room for all of its body as soon as its header says how long that is.",
    // Queues.
    RequeueAtTail "requeue-at-tail" "A message that comes back is delivered behind all others.",
    RequeuedWithoutFlag "requeued-without-flag" "A message that comes back is delivered without the flag.",
    MultipleAckStopsShort "multiple-ack-stops-short" "An ack of several leaves out the last of them.",
    RollbackForgets "rollback-forgets" "What a transaction has settled stays settled when it is rolled back.",
    PrefetchOneTooMany "prefetch-one-too-many" "A consumer may hold one more than its prefetch.",
    LengthOneTooMany "length-one-too-many" "A queue may be longer by one than it says.",
    KeptLettersUncounted "kept-letters-uncounted" "Dead letters that a queue has to keep do not count for its length.",
    LateHandedOut "late-handed-out" "A message is handed out though its time to live has passed.",
    LateConsumerStays "late-consumer-stays" "A consumer that is late is not cancelled.",
    ExclusiveQueueStays "exclusive-queue-stays" "An exclusive queue outlives its connection.",
    DeadLetterLost "dead-letter-lost" "A dead letter whose body is not in memory goes nowhere.",
    DeadLetterBeforeDeparture "dead-letter-before-departure" "A dead letter is handed out before it is gone for good where it died.",
    TimeToLiveOnWallClock "time-to-live-on-wall-clock" "A deadline is counted from the wall clock.",
    UnusedByWallClock "unused-by-wall-clock" "How long nobody has used a queue is told by the wall clock.",
    // What is looked up once for many.
    RowInTransaction "row-in-transaction" "What is published in a row on a transactional channel is not held back.",
    RowNumberedOnce "row-numbered-once" "All deliveries of a row have the number of the first.",
    RowNotJournaled "row-not-journaled" "What is published in a row to a durable queue is not journaled.",
    PropertiesOfBefore "properties-of-before" "A publish has the properties of the one before it.",
    CreditForOne "credit-for-one" "Several acks give back credit for one delivery.",
    AcksBehindUnknownTag "acks-behind-unknown-tag" "An ack of a tag that is unknown is passed over.",
    // Routing, permissions.
    StaleRoute "stale-route" "A route is remembered after the bindings have changed.",
    HashNeedsWord "hash-needs-word" "A # in a binding key does not stand for no word at all.",
    PermissionsRemembered "permissions-remembered" "What a user was allowed is remembered when permissions change.",
    PassiveDeclareUnchecked "passive-declare-unchecked" "A passive declaration asks for no permission.",
    // What a restart finds.
    AckBeforePublish "ack-before-publish" "An ack is replayed before the publish that stood before it.",
    FanOutJournaledOnce "fan-out-journaled-once" "A message that goes to several queues is journaled for one of them.",
    FanOutInPieces "fan-out-in-pieces" "A crash may find a message in some of the queues that it went to.",
    GrantedWithoutFlag "granted-without-flag" "What may have been delivered before a crash does not carry the flag.",
    CommitInPieces "commit-in-pieces" "A crash may find a part of a transaction.",
    CheckpointKeepsAcked "checkpoint-keeps-acked" "What is acked while a checkpoint is written comes back.",
    CheckpointWithoutBindings "checkpoint-without-bindings" "A checkpoint leaves bindings out.",
    TimeToLiveBeginsAnew "time-to-live-begins-anew" "A time to live begins anew with each start.",
    // The hand-over between threads.
    WokenBeforeFilled "woken-before-filled" "The owner of an outbox is woken before anything is in it.",
    CountedAfterHandedOver "counted-after-handed-over" "What is handed to a connection counts only after it may have been written.",
    LookedBeforeRegistered "looked-before-registered" "Who waits for a position looks how far the journal is, and registers after that.",
    WokenBeforeReached "woken-before-reached" "Who waits for a position is woken before the journal says that it has come there.",
    ReachedBeforeSync "reached-before-sync" "The journal says how far it is before it has written and synced that.",
    WriterNotWoken "writer-not-woken" "What could not be written here, as somebody else was writing, is told to nobody.",
    LookedBeforeIdle "looked-before-idle" "The writer says that it sleeps after it has let go of the lock with which it looked.",
    CongestionToldLate "congestion-told-late" "That too much waits is said when it may be written already.",
    OrderDropped "order-dropped" "What the writer is asked for is forgotten if a batch has no room for all that came before.",
    OrderOvertakes "order-overtakes" "The writer does what it is asked for before what came before.",
    AskersForgotten "askers-forgotten" "Nobody answers who has asked a writer that has ended.",
    ChangesAfterUnlock "changes-after-unlock" "The journal is given changes without the lock under which they were decided.",
    GroupSplit "group-split" "Changes that belong together may be in two batches.",
}

impl fmt::Display for Bug {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Whether this process has a bug.
#[cfg(not(all(feature = "on", debug_assertions)))]
pub const fn planted(_: Bug) -> bool {
    false
}

/// Whether this process has a bug.
///
/// # Panics
/// If [`VARIABLE`] is set to something else than the name of one.
#[cfg(all(feature = "on", debug_assertions))]
pub fn planted(bug: Bug) -> bool {
    static CHOSEN: std::sync::LazyLock<Option<Bug>> = std::sync::LazyLock::new(|| {
        let name = std::env::var_os(VARIABLE)?;
        let chosen = Bug::ALL.iter().find(|bug| name == bug.name());
        Some(*chosen.unwrap_or_else(|| panic!("{VARIABLE} names no bug: {}", name.display())))
    });
    *CHOSEN == Some(bug)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_bug_has_a_name_of_its_own() {
        let names: BTreeSet<_> = Bug::ALL.iter().map(|bug| bug.name()).collect();
        assert_eq!(names.len(), Bug::ALL.len());
        assert!(names.iter().all(|name| name.chars().all(|c| c.is_ascii_lowercase() || c == '-')));
    }

    #[test]
    fn nobody_has_a_bug_without_asking() {
        assert!(Bug::ALL.iter().all(|&bug| !planted(bug)));
    }
}
