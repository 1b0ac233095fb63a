// The client scenario with amqplib (promise API).
//
// Run: AMQP_URL=amqp://guest:guest@127.0.0.1:5672/%2F node amqplib_steps.js
//
// Each step opens connections of its own and fails by throwing. The program
// prints one line for each step (`ok N name` or `not ok N name: reason`), then
// the line `PASSED/TOTAL steps`, and exits 0 only if every step passed.

'use strict';

const assert = require('node:assert/strict');
const crypto = require('node:crypto');
const { setTimeout } = require('node:timers/promises');
const { inspect, isDeepStrictEqual } = require('node:util');
const amqp = require('amqplib');

// Milliseconds that one step may take in all.
const STEP_DEADLINE = 20_000;

// Milliseconds that a step waits for one condition. This is shorter than the
// step's deadline, so that the reason printed says what did not happen.
const WAIT = 8_000;

const AMQP_URL = process.env.AMQP_URL;
if (!AMQP_URL) {
  console.error('AMQP_URL is not set; example: amqp://guest:guest@127.0.0.1:5672/%2F');
  process.exit(1);
}
const VHOST = decodeURIComponent(new URL(AMQP_URL).pathname.slice(1)) || '/';

const suffix = crypto.randomBytes(6).toString('hex');
let names = 0;

// Durable queues that the steps declared; they are deleted at the end.
const durableQueues = [];

// Returns a name that no other step and no other run uses.
function unique(label) {
  names += 1;
  return `steps-${label}-${suffix}-${names}`;
}

// Fails the step unless both values are deeply equal.
function checkEqual(actual, expected, what) {
  assert.ok(
    isDeepStrictEqual(actual, expected),
    `${what} is ${inspect(actual)}, expected ${inspect(expected)}`,
  );
}

// Rejects with the given reason unless the promise settles in time.
function within(milliseconds, promise, reason) {
  const abort = new AbortController();
  const timeout = setTimeout(milliseconds, undefined, { signal: abort.signal }).then(
    () => assert.fail(reason),
    () => undefined,
  );
  return Promise.race([promise, timeout]).finally(() => abort.abort());
}

// Opens a connection. amqplib reports an error of a connection or a channel to
// its listeners as well as to the caller; without a listener it would end the
// program.
async function connect(url = AMQP_URL) {
  const connection = await amqp.connect(url, { timeout: WAIT });
  connection.on('error', () => {});
  return connection;
}

async function openChannel(connection, kind = 'createChannel') {
  const channel = await connection[kind]();
  channel.on('error', () => {});
  return channel;
}

// Calls the step with a new connection and closes it unless the step failed.
function withConnection(step) {
  return async () => {
    const connection = await connect();
    await step(connection);
    await connection.close();
  };
}

// Declares a queue that lives as long as its connection; returns its name.
async function declare(channel, label) {
  const queue = unique(label);
  await channel.assertQueue(queue, { exclusive: true, durable: false });
  return queue;
}

// Returns how many messages wait in the queue, from a passive declare.
async function readyMessages(channel, queue) {
  return (await channel.checkQueue(queue)).messageCount;
}

// Waits until `count` messages wait in the queue. A broker may count before it
// enqueued all that came before on the channel.
async function waitForReady(channel, queue, count) {
  const deadline = Date.now() + WAIT;
  for (;;) {
    const actual = await readyMessages(channel, queue);
    if (actual === count) {
      return;
    }
    assert.ok(Date.now() < deadline, `the message count is ${actual}, expected ${count}`);
    await setTimeout(20);
  }
}

// The messages that come to one consumer, in their order.
class Inbox {
  constructor() {
    this.messages = [];
    this.wake = () => {};
  }

  push(message) {
    this.messages.push(message);
    this.wake();
  }

  // Waits until `count` messages came in all.
  async wait(count) {
    const enough = (async () => {
      while (this.messages.length < count) {
        await new Promise((resolve) => {
          this.wake = resolve;
        });
      }
    })();
    await within(WAIT, enough, `fewer than ${count} messages came within ${WAIT} ms`);
  }
}

// Starts a consumer and returns its inbox.
async function consume(channel, queue, options = {}) {
  const inbox = new Inbox();
  await channel.consume(queue, (message) => inbox.push(message), options);
  return inbox;
}

// Checks that `action` closes its channel with `code`, and only its channel.
async function checkChannelError(connection, action, code, ...patterns) {
  const channel = await openChannel(connection);
  const closed = new Promise((resolve) => {
    channel.on('close', resolve);
  });
  const error = await action(channel).then(
    () => assert.fail(`no error came, expected ${code}`),
    (reason) => reason,
  );
  checkEqual(error.code, code, `the code of the error "${error.message}"`);
  for (const pattern of patterns) {
    assert.ok(
      error.message.includes(pattern),
      `the error text "${error.message}" does not contain "${pattern}"`,
    );
  }
  await within(WAIT, closed, 'the channel did not close after the error');
  await declare(await openChannel(connection), 'after-error');
}

// amqplib puts the broker's text between quotation marks at the end of its own
// message, so a leading quotation mark stands for the start of the text.
const startsWith = (text) => `"${text}`;

const declareAndCount = withConnection(async (connection) => {
  const channel = await openChannel(connection);
  const queue = unique('count');
  const declared = await channel.assertQueue(queue, { exclusive: true, durable: false });
  checkEqual(declared.queue, queue, 'the declared name');
  checkEqual(declared.messageCount, 0, 'the message count of a new queue');
  for (let number = 0; number < 3; number += 1) {
    channel.sendToQueue(queue, Buffer.from(`message ${number}`));
  }
  await waitForReady(channel, queue, 3);
});

const publishConsumeAutoAck = withConnection(async (connection) => {
  const channel = await openChannel(connection);
  const queue = await declare(channel, 'auto-ack');
  const inbox = await consume(channel, queue, { noAck: true });
  const bodies = Array.from({ length: 100 }, (_, number) => `message ${number}`);
  for (const body of bodies) {
    channel.sendToQueue(queue, Buffer.from(body));
  }
  await inbox.wait(100);
  checkEqual(
    inbox.messages.map((message) => message.content.toString()),
    bodies,
    'the sequence of bodies',
  );
  checkEqual(
    inbox.messages.map((message) => message.fields.deliveryTag),
    bodies.map((_, index) => index + 1),
    'the sequence of delivery tags',
  );
  // Nothing is left to acknowledge, so nothing returns to the queue.
  await channel.close();
  const left = await readyMessages(await openChannel(connection), queue);
  checkEqual(left, 0, 'the message count');
});

const consumeManualAckPrefetch = withConnection(async (connection) => {
  const channel = await openChannel(connection);
  const queue = await declare(channel, 'prefetch');
  channel.sendToQueue(queue, Buffer.from('first'));
  channel.sendToQueue(queue, Buffer.from('second'));
  await waitForReady(channel, queue, 2);
  await channel.prefetch(1);
  const inbox = await consume(channel, queue);
  await inbox.wait(1);
  checkEqual(inbox.messages[0].content.toString(), 'first', 'the first body');
  // The broker answers on the channel after all that it sent on it before.
  const waiting = await readyMessages(channel, queue);
  checkEqual(waiting, 1, 'the message count before the ack');
  checkEqual(inbox.messages.length, 1, 'the number of deliveries before the ack');
  channel.ack(inbox.messages[0]);
  await inbox.wait(2);
  checkEqual(inbox.messages[1].content.toString(), 'second', 'the second body');
  channel.ack(inbox.messages[1]);
  await channel.close();
  const left = await readyMessages(await openChannel(connection), queue);
  checkEqual(left, 0, 'the message count');
});

const confirms = withConnection(async (connection) => {
  const channel = await openChannel(connection, 'createConfirmChannel');
  const queue = await declare(channel, 'confirms');
  // All 100 are on their way before the first confirm is waited for.
  const confirmed = Array.from(
    { length: 100 },
    (_, number) =>
      new Promise((resolve, reject) => {
        channel.sendToQueue(queue, Buffer.from(`message ${number}`), {}, (error) =>
          error ? reject(error) : resolve(),
        );
      }),
  );
  await within(WAIT, Promise.all(confirmed), `no confirm of every message within ${WAIT} ms`);
  checkEqual(await readyMessages(channel, queue), 100, 'the message count');
});

const mandatoryReturn = withConnection(async (connection) => {
  const channel = await openChannel(connection, 'createConfirmChannel');
  const queue = await declare(channel, 'mandatory');
  const missing = unique('missing');
  const events = [];
  channel.on('return', (message) => events.push(message));
  const publish = (key, body, options) => {
    channel.publish('', key, Buffer.from(body), options, (error) =>
      events.push(error ? `nack ${body}` : `ack ${body}`),
    );
  };
  publish(missing, 'lost', { mandatory: true });
  // Neither of these comes back.
  publish(missing, 'dropped', {});
  publish(queue, 'kept', { mandatory: true });
  await within(WAIT, channel.waitForConfirms(), `no confirm of every message within ${WAIT} ms`);
  const [returned, ...confirmed] = events;
  checkEqual(typeof returned, 'object', `the kind of the first answer, ${returned},`);
  checkEqual(returned.fields.replyCode, 312, 'the reply code');
  checkEqual(returned.fields.replyText, 'NO_ROUTE', 'the reply text');
  checkEqual(returned.fields.exchange, '', 'the exchange');
  checkEqual(returned.fields.routingKey, missing, 'the routing key');
  checkEqual(returned.content.toString(), 'lost', 'the returned body');
  checkEqual(
    confirmed.toSorted(),
    ['ack dropped', 'ack kept', 'ack lost'],
    'the answers after the return',
  );
  checkEqual(await readyMessages(channel, queue), 1, 'the message count');
});

const redelivery = withConnection(async (connection) => {
  const channel = await openChannel(connection);
  const queue = await declare(channel, 'redelivery');
  channel.sendToQueue(queue, Buffer.from('again'));
  const inbox = await consume(channel, queue);
  await inbox.wait(1);
  checkEqual(inbox.messages[0].fields.redelivered, false, 'redelivered of the first delivery');
  channel.nack(inbox.messages[0], false, true);
  await inbox.wait(2);
  checkEqual(inbox.messages[1].content.toString(), 'again', 'the body after the nack');
  checkEqual(inbox.messages[1].fields.redelivered, true, 'redelivered after the nack');
  await channel.close();
  const second = await consume(await openChannel(connection), queue, { noAck: true });
  await second.wait(1);
  const [message] = second.messages;
  checkEqual(message.content.toString(), 'again', 'the body after the channel closed');
  checkEqual(message.fields.redelivered, true, 'redelivered after the channel closed');
});

const bodyOverSeveralFrames = withConnection(async (connection) => {
  const channel = await openChannel(connection);
  const queue = await declare(channel, 'bodies');
  const bodies = [crypto.randomBytes(1_000_000), Buffer.alloc(0), Buffer.from('end')];
  for (const body of bodies) {
    channel.sendToQueue(queue, body);
  }
  const inbox = await consume(channel, queue, { noAck: true });
  await inbox.wait(bodies.length);
  bodies.forEach((body, index) => {
    const back = inbox.messages[index].content;
    assert.ok(
      body.equals(back),
      `${back.length} bytes came back, not the same ${body.length}`,
    );
  });
});

const headersOfEveryTableType = withConnection(async (connection) => {
  // A field value written as {'!': type, value} has the type named; other
  // numbers get the smallest type that holds them.
  const typed = (type, value) => ({ '!': type, value });
  const written = {
    true: true,
    false: false,
    int8: typed('int8', -100),
    uint8: typed('uint8', 200),
    int16: typed('int16', -30_000),
    uint16: typed('uint16', 60_000),
    int32: typed('int32', -2_000_000_000),
    uint32: typed('uint32', 4_000_000_000),
    int64: typed('int64', 9_000_000_000_000),
    'negative int64': typed('int64', -9_000_000_000_000),
    float: typed('float', -1.5),
    double: -1234.56789,
    decimal: typed('decimal', { places: 2, digits: 314 }),
    string: 'grüße, 메시지',
    'empty string': '',
    bytes: Buffer.from([0x00, 0xff, 0x80]),
    timestamp: typed('timestamp', 1_709_209_815),
    table: { inner: { deep: 1, text: 'x' }, empty: {} },
    array: [1, 'two', false, null, [3], { four: 4 }],
    'empty array': [],
    void: null,
  };
  // amqplib gives numbers back as plain numbers, and timestamps and decimals as
  // they were written.
  const plain = (value) => {
    const type = value?.['!'];
    return type && type !== 'decimal' && type !== 'timestamp' ? value.value : value;
  };
  const expected = Object.fromEntries(
    Object.entries(written).map(([name, value]) => [name, plain(value)]),
  );
  const properties = {
    contentType: 'application/x-test',
    contentEncoding: 'identity',
    deliveryMode: 2,
    priority: 5,
    correlationId: 'correlation',
    replyTo: 'reply.queue',
    messageId: 'message-1',
    timestamp: 1_700_000_000,
    type: 'test.type',
    userId: 'guest',
    appId: 'amqplib-steps',
  };
  const channel = await openChannel(connection);
  const queue = await declare(channel, 'headers');
  channel.sendToQueue(queue, Buffer.from('x'), { ...properties, headers: written });
  const inbox = await consume(channel, queue, { noAck: true });
  await inbox.wait(1);
  const received = inbox.messages[0].properties;
  for (const [name, value] of Object.entries(expected)) {
    assert.ok(name in received.headers, `the header ${name} is missing`);
    checkEqual(received.headers[name], value, `the header ${name}`);
  }
  checkEqual(
    Object.keys(received.headers).toSorted(),
    Object.keys(expected).toSorted(),
    'the header names',
  );
  for (const [name, value] of Object.entries(properties)) {
    checkEqual(received[name], value, `the property ${name}`);
  }
  checkEqual(received.expiration, undefined, 'the property expiration');
});

const pdfOfTwoPages = { 'x-match': 'all', format: 'pdf', pages: 2 };
const pdfOrReport = { 'x-match': 'any', format: 'pdf', kind: 'report' };

// Bindings of two queues, `a` and `b`, to one exchange, and where messages go:
// each message is a routing key, headers and the queues that must get it. One
// binding of each exchange stays to the end, so that an auto-delete exchange
// stays as well.
const ROUTING_CASES = [
  {
    kind: 'direct',
    bindings: [
      ['a', 'red', {}],
      ['a', 'green', {}],
      ['b', 'blue', {}],
    ],
    messages: [
      ['red', {}, 'a'],
      ['green', {}, 'a'],
      ['blue', {}, 'b'],
      ['yellow', {}, ''],
    ],
    unbound: ['a', 'red', {}],
    after: [
      ['red', {}, ''],
      ['green', {}, 'a'],
      ['blue', {}, 'b'],
    ],
  },
  {
    kind: 'fanout',
    bindings: [
      ['a', '', {}],
      ['b', 'ignored', {}],
    ],
    messages: [
      ['', {}, 'ab'],
      ['anything', {}, 'ab'],
    ],
    unbound: ['b', 'ignored', {}],
    after: [
      ['', {}, 'a'],
      ['ignored', {}, 'a'],
    ],
  },
  {
    kind: 'topic',
    bindings: [
      ['a', '*.error', {}],
      ['b', 'app.#', {}],
    ],
    messages: [
      ['app.error', {}, 'ab'],
      ['web.error', {}, 'a'],
      ['web.db.error', {}, ''],
      ['error', {}, ''],
      ['app', {}, 'b'],
      ['app.web.start', {}, 'b'],
      ['apple', {}, ''],
    ],
    unbound: ['b', 'app.#', {}],
    after: [
      ['app', {}, ''],
      ['app.error', {}, 'a'],
    ],
  },
  {
    kind: 'headers',
    bindings: [
      ['a', '', pdfOfTwoPages],
      ['b', '', pdfOrReport],
    ],
    messages: [
      ['', { format: 'pdf', pages: 2 }, 'ab'],
      ['', { format: 'pdf' }, 'b'],
      ['', { format: 'text', kind: 'report' }, 'b'],
      ['', { format: 'text', pages: 2 }, ''],
      ['', { other: true }, ''],
    ],
    unbound: ['b', '', pdfOrReport],
    after: [
      ['', { format: 'pdf' }, ''],
      ['', { format: 'pdf', pages: 2 }, 'a'],
    ],
  },
];

// Publishes each message and checks that exactly the right queues got it.
async function checkRouting(channel, kind, exchange, queues, messages) {
  for (const [index, [key, headers, expected]] of messages.entries()) {
    const body = `message ${index}`;
    channel.publish(exchange, key, Buffer.from(body), { headers });
    for (const [name, queue] of Object.entries(queues)) {
      const bodies = [];
      for (;;) {
        const message = await channel.get(queue, { noAck: true });
        if (message === false) {
          break;
        }
        bodies.push(message.content.toString());
      }
      checkEqual(
        bodies,
        expected.includes(name) ? [body] : [],
        `what queue ${name} of the ${kind} exchange holds after a message with key ` +
          `"${key}" and headers ${inspect(headers)}`,
      );
    }
  }
}

const exchangesAndBindings = withConnection(async (connection) => {
  for (const { kind, bindings, messages, unbound, after } of ROUTING_CASES) {
    const channel = await openChannel(connection);
    const exchange = unique(kind);
    await channel.assertExchange(exchange, kind, { durable: false, autoDelete: true });
    const queues = {
      a: await declare(channel, `${kind}-a`),
      b: await declare(channel, `${kind}-b`),
    };
    for (const [queue, key, headers] of bindings) {
      await channel.bindQueue(queues[queue], exchange, key, headers);
    }
    await checkRouting(channel, kind, exchange, queues, messages);
    const [queue, key, headers] = unbound;
    await channel.unbindQueue(queues[queue], exchange, key, headers);
    await checkRouting(channel, kind, exchange, queues, after);
  }
});

const error403AccessRefused = withConnection(async (connection) => {
  await checkChannelError(
    connection,
    (channel) => channel.assertQueue(`amq.${unique('reserved')}`, { exclusive: true }),
    403,
    startsWith('ACCESS_REFUSED'),
  );
});

const error404NotFound = withConnection(async (connection) => {
  const missing = unique('missing');
  await checkChannelError(
    connection,
    (channel) => channel.checkQueue(missing),
    404,
    startsWith(`NOT_FOUND - no queue '${missing}' in vhost '${VHOST}'`),
  );
});

const error405ResourceLocked = withConnection(async (owner) => {
  const other = await connect();
  const queue = await declare(await openChannel(owner), 'locked');
  for (const action of [
    (channel) => channel.checkQueue(queue),
    (channel) => channel.consume(queue, () => {}),
  ]) {
    await checkChannelError(other, action, 405, startsWith('RESOURCE_LOCKED'), `'${queue}'`);
  }
  await other.close();
});

const error406PreconditionFailed = withConnection(async (connection) => {
  const queue = unique('durable');
  durableQueues.push(queue);
  await (await openChannel(connection)).assertQueue(queue, { durable: true });
  await checkChannelError(
    connection,
    (channel) => channel.assertQueue(queue, { durable: false }),
    406,
    startsWith('PRECONDITION_FAILED'),
    `inequivalent arg 'durable' for queue '${queue}' in vhost '${VHOST}'`,
  );
  // The same declaration is no error.
  await (await openChannel(connection)).assertQueue(queue, { durable: true });
});

async function error530NotAllowed() {
  const url = new URL(AMQP_URL);
  url.pathname = `/${unique('no-vhost')}`;
  const error = await connect(url.href).then(
    () => assert.fail('an unknown virtual host was opened'),
    (reason) => reason,
  );
  // While the connection opens, amqplib shows that the broker closed it instead,
  // but neither the code 530 nor the text.
  for (const part of ['ConnectionOpenOk', 'ConnectionClose']) {
    assert.ok(
      error.message.includes(part),
      `the error text "${error.message}" does not contain "${part}"`,
    );
  }
}

const deleteDurableQueues = withConnection(async (connection) => {
  const channel = await openChannel(connection);
  for (const queue of durableQueues) {
    await channel.deleteQueue(queue);
  }
});

const STEPS = [
  ['declare_and_count', declareAndCount],
  ['publish_consume_auto_ack', publishConsumeAutoAck],
  ['consume_manual_ack_prefetch', consumeManualAckPrefetch],
  ['confirms', confirms],
  ['mandatory_return', mandatoryReturn],
  ['redelivery', redelivery],
  ['body_over_several_frames', bodyOverSeveralFrames],
  ['headers_of_every_table_type', headersOfEveryTableType],
  ['exchanges_and_bindings', exchangesAndBindings],
  ['error_403_access_refused', error403AccessRefused],
  ['error_404_not_found', error404NotFound],
  ['error_405_resource_locked', error405ResourceLocked],
  ['error_406_precondition_failed', error406PreconditionFailed],
  ['error_530_not_allowed', error530NotAllowed],
];

// Runs one step; returns the reason if it failed.
async function runStep(step) {
  try {
    await within(STEP_DEADLINE, step(), `not done within ${STEP_DEADLINE} ms`);
    return undefined;
  } catch (error) {
    return String(error?.message || error)
      .split(/\s+/)
      .join(' ');
  }
}

async function main() {
  let passed = 0;
  for (const [index, [name, step]] of STEPS.entries()) {
    const reason = await runStep(step);
    if (reason === undefined) {
      passed += 1;
      console.log(`ok ${index + 1} ${name}`);
    } else {
      console.log(`not ok ${index + 1} ${name}: ${reason}`);
    }
  }
  const reason = await runStep(deleteDurableQueues);
  if (reason !== undefined) {
    console.error(`cleanup failed: ${reason}`);
  }
  console.log(`${passed}/${STEPS.length} steps`);
  // A step that failed may have left a connection open. Nothing waits for it.
  process.exit(passed === STEPS.length ? 0 : 1);
}

main();
