"""A consumer that prints the body of each message and acks none, until it is killed.

Run: AMQP_URL=amqp://guest:guest@127.0.0.1:5672/%2F python holding_consumer.py QUEUE PREFETCH
"""

import os
import sys

import pika


def main():
    queue, prefetch = sys.argv[1], int(sys.argv[2])
    connection = pika.BlockingConnection(pika.URLParameters(os.environ["AMQP_URL"]))
    channel = connection.channel()
    channel.basic_qos(prefetch_count=prefetch)
    channel.basic_consume(
        queue, lambda _channel, _method, _properties, body: print(body.decode(), flush=True)
    )
    channel.start_consuming()


if __name__ == "__main__":
    main()
