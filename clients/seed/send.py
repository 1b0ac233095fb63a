import pika

# RabbitMQ와 연결 설정
connection = pika.BlockingConnection(pika.ConnectionParameters('localhost'))
channel = connection.channel()

# 큐 생성
channel.queue_declare(queue='my_queue')

# 메세지 보내기
channel.basic_publish(exchange='', routing_key='my_queue', body='Hello, World!')

# 연결 닫기
connection.close()
