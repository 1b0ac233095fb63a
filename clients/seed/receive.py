import pika

# RabbitMQ와 연결 설정
connection = pika.BlockingConnection(pika.ConnectionParameters('localhost'))
channel = connection.channel()

# 큐 생성
channel.queue_declare(queue='my_queue')

# 메세지 받기 콜백 함수
def receive_message_callback(ch, method, properties, body):
    print("Received message:", body)

# 큐에서 메세지 받기
channel.basic_consume(queue='my_queue', on_message_callback=receive_message_callback, auto_ack=True)

# 메세지 처리를 위한 대기
channel.start_consuming()

# 연결 닫기
connection.close()
