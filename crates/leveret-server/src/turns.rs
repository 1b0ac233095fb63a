//! Which thread has the next turn of a connection's task.
//!
//! Who is woken by a task runs on its thread as soon as its turn ends. That is quickest where there is little to do: no other
//! thread has to be woken. But a client that never stops sending and another one that never stops reading would share one
//! thread, however many there are. So the first says that it goes on, and the second then has its turn on another thread.

use std::cell::Cell;

thread_local! {
    static GOES_ON: Cell<bool> = const { Cell::new(false) };
}

/// Ends the turn of a task that has more to do at once; those whom it has woken are to have theirs on another thread.
pub(crate) async fn go_on() {
    GOES_ON.set(true);
    tokio::task::yield_now().await;
}

/// Begins the turn of a task that was woken. If who woke it on this thread goes on, both wait for a next turn, and that is what makes another
/// thread take one of them.
pub(crate) async fn begin() {
    if GOES_ON.take() {
        tokio::task::yield_now().await;
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::{Arc, mpsc};
    use std::time::Duration;

    use tokio::runtime::Builder;
    use tokio::sync::Notify;

    use super::*;

    /// Each waits, on its thread, for the other one to be there.
    #[test]
    fn who_goes_on_and_who_was_woken_are_served_at_once() {
        const DEADLINE: Duration = Duration::from_secs(30);
        let runtime = Builder::new_multi_thread().worker_threads(2).build().unwrap();
        let notify = Arc::new(Notify::new());
        let (to_reader, at_reader) = mpsc::channel();
        let (to_sender, at_sender) = mpsc::channel();
        let (ready, is_ready) = mpsc::channel();
        let reader = runtime.spawn({
            let notify = Arc::clone(&notify);
            async move {
                let mut notified = pin!(notify.notified());
                notified.as_mut().enable();
                ready.send(()).unwrap();
                notified.await;
                begin().await;
                to_sender.send(()).unwrap();
                at_reader.recv_timeout(DEADLINE)
            }
        });
        is_ready.recv_timeout(DEADLINE).unwrap();
        let sender = runtime.spawn(async move {
            notify.notify_one();
            go_on().await;
            to_reader.send(()).unwrap();
            at_sender.recv_timeout(DEADLINE)
        });
        runtime.block_on(async {
            sender.await.unwrap().unwrap();
            reader.await.unwrap().unwrap();
        });
    }
}
