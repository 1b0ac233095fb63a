//! A list as a JSON array, written page by page as fast as the client reads it.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes, HttpBody};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use hyper::body::Frame;
use serde::Serialize;

/// Answers with all pages as one array. The next page is made when the client has taken most of the last one.
pub(crate) fn array<V: Serialize>(pages: impl Iterator<Item = Vec<V>> + Send + Unpin + 'static) -> Response {
    let array = Array { pages: pages.fuse(), is_begun: false, is_ended: false, others_had_turn: true };
    ([(header::CONTENT_TYPE, "application/json")], Body::new(array)).into_response()
}

struct Array<I> {
    pages: std::iter::Fuse<I>,
    is_begun: bool,
    is_ended: bool,
    /// Since the last page, which took a while to make.
    others_had_turn: bool,
}

impl<V: Serialize, I: Iterator<Item = Vec<V>>> Array<I> {
    /// What is to be sent next. An element that cannot be written down is left out; none of ours is such.
    fn next(&mut self) -> Vec<u8> {
        let mut chunk = Vec::new();
        let Some(page) = self.pages.next() else {
            self.is_ended = true;
            chunk.extend(if self.is_begun { b"]".as_slice() } else { b"[]" });
            return chunk;
        };
        for element in &page {
            let before = chunk.len();
            chunk.push(if self.is_begun { b',' } else { b'[' });
            match serde_json::to_writer(&mut chunk, element) {
                Ok(()) => self.is_begun = true,
                Err(error) => {
                    tracing::error!(%error, "a view cannot be written as JSON");
                    chunk.truncate(before);
                }
            }
        }
        chunk
    }
}

impl<V: Serialize, I: Iterator<Item = Vec<V>> + Unpin> HttpBody for Array<I> {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.is_ended {
            return Poll::Ready(None);
        }
        if std::mem::take(&mut self.others_had_turn) {
            let chunk = self.next();
            if !chunk.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(chunk.into()))));
            }
        }
        self.others_had_turn = true;
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    fn text(pages: Vec<Vec<u32>>) -> String {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let body = array(pages.into_iter()).into_body();
        let bytes = runtime.block_on(body.collect()).unwrap().to_bytes();
        String::from_utf8(bytes.to_vec()).unwrap()
    }

    #[test]
    fn pages_become_one_array_whatever_is_in_them() {
        assert_eq!(text(vec![]), "[]");
        assert_eq!(text(vec![vec![], vec![]]), "[]");
        assert_eq!(text(vec![vec![1]]), "[1]");
        assert_eq!(text(vec![vec![], vec![1, 2], vec![], vec![3]]), "[1,2,3]");
    }
}
