"""Sentence frames in English and Chinese, and what fills their slots, for the source `parallel_zh_en`.

A frame is a pair of templates that say the same. A slot is written with its language, `{thing_en}` and `{thing_zh}`,
and both come from one row of a table, so the two sentences agree by construction.
"""

# (English, Chinese), all in the past
TIMES = [
    ("yesterday", "昨天"),
    ("this morning", "今天早上"),
    ("last week", "上个星期"),
    ("last night", "昨天晚上"),
    ("last Sunday", "上个星期日"),
    ("two days ago", "两天前"),
]
FUTURE_TIMES = [
    ("tomorrow", "明天"),
    ("next week", "下个星期"),
    ("this evening", "今天晚上"),
    ("next Saturday", "下个星期六"),
    ("next month", "下个月"),
]
PLACES = [
    ("the park", "公园"),
    ("the library", "图书馆"),
    ("the hospital", "医院"),
    ("the railway station", "火车站"),
    ("the school", "学校"),
    ("the supermarket", "超市"),
    ("the post office", "邮局"),
    ("the museum", "博物馆"),
    ("the cinema", "电影院"),
    ("the airport", "机场"),
]
# (base form, past form, -ing form, Chinese)
ACTIVITIES = [
    ("play football", "played football", "playing football", "踢足球"),
    ("read books", "read books", "reading books", "看书"),
    ("listen to music", "listened to music", "listening to music", "听音乐"),
    ("cook dinner", "cooked dinner", "cooking dinner", "做晚饭"),
    ("watch television", "watched television", "watching television", "看电视"),
    ("clean the room", "cleaned the room", "cleaning the room", "打扫房间"),
    ("write letters", "wrote letters", "writing letters", "写信"),
    ("draw pictures", "drew pictures", "drawing pictures", "画画"),
    ("learn English", "learned English", "learning English", "学英语"),
    ("do homework", "did homework", "doing homework", "做作业"),
    ("plant trees", "planted trees", "planting trees", "种树"),
    ("play chess", "played chess", "playing chess", "下棋"),
]
RELATIVES = [
    ("mother", "妈妈"),
    ("father", "爸爸"),
    ("grandmother", "奶奶"),
    ("grandfather", "爷爷"),
    ("teacher", "老师"),
    ("friend", "朋友"),
]
TRANSPORT = [
    ("by bus", "坐公共汽车"),
    ("by train", "坐火车"),
    ("on foot", "走路"),
    ("by bicycle", "骑自行车"),
    ("by taxi", "坐出租车"),
]
WEATHER = [
    ("sunny", "是晴天"),
    ("cloudy", "是阴天"),
    ("very windy", "刮大风"),
    ("rainy", "下雨"),
    ("snowy", "下雪"),
    ("very hot", "很热"),
    ("very cold", "很冷"),
]
COLOURS = [
    ("red", "红色"),
    ("blue", "蓝色"),
    ("yellow", "黄色"),
    ("green", "绿色"),
    ("white", "白色"),
    ("black", "黑色"),
]
FEELINGS = [
    ("happy", "高兴"),
    ("sad", "难过"),
    ("tired", "累"),
    ("hungry", "饿"),
    ("worried", "担心"),
    ("angry", "生气"),
]

FRAMES = [
    ("{p_en} bought {n_en} {things_en} {time_en}.", "{time_zh}，{p_zh}买了{n_zh}{m_zh}{thing_zh}。"),
    ("{p_en} has {n_en} {things_en}.", "{p_zh}有{n_zh}{m_zh}{thing_zh}。"),
    ("There are {n_en} {things_en} in the shop.", "商店里有{n_zh}{m_zh}{thing_zh}。"),
    ("How many {things_en} do you have?", "你有多少{m_zh}{thing_zh}？"),
    ("This {thing_en} costs {price} yuan.", "这{m_zh}{thing_zh}{price}元。"),
    ("I want to buy {a_thing_en}.", "我想买一{m_zh}{thing_zh}。"),
    ("You can buy {things_en} at {shop_en}.", "你可以在{shop_zh}买到{thing_zh}。"),
    ("{p_en} gave {q_en} {a_thing_en}.", "{p_zh}给了{q_zh}一{m_zh}{thing_zh}。"),
    ("{p_en} likes this {thing_en} very much.", "{p_zh}很喜欢这{m_zh}{thing_zh}。"),
    ("My favourite colour is {colour_en}.", "我最喜欢的颜色是{colour_zh}。"),
    ("Whose {thing_en} is this?", "这是谁的{thing_zh}？"),
    ("{p_en} went to {place_en} {time_en}.", "{time_zh}，{p_zh}去了{place_zh}。"),
    ("{p_en} will go to {place_en} {future_en}.", "{future_zh}，{p_zh}要去{place_zh}。"),
    ("{p_en} goes to {place_en} {by_en}.", "{p_zh}{by_zh}去{place_zh}。"),
    ("{p_en} met {q_en} at {place_en} {time_en}.", "{time_zh}，{p_zh}在{place_zh}遇见了{q_zh}。"),
    ("Excuse me, how can I get to {place_en}?", "请问，去{place_zh}怎么走？"),
    ("{place2_en} is next to {place_en}.", "{place2_zh}在{place_zh}旁边。"),
    ("{place2_en} is very far from here.", "{place2_zh}离这里很远。"),
    ("It takes {minutes} minutes to walk to {place_en}.", "走到{place_zh}要{minutes}分钟。"),
    ("{p_en} likes to {act_en}.", "{p_zh}喜欢{act_zh}。"),
    ("{p_en} does not like to {act_en}.", "{p_zh}不喜欢{act_zh}。"),
    ("{p_en} is {acting_en} now.", "{p_zh}正在{act_zh}。"),
    ("Do you want to {act_en} with {p_en}?", "你想和{p_zh}一起{act_zh}吗？"),
    ("{p_en} {acted_en} {time_en}.", "{time_zh}，{p_zh}{act_zh}了。"),
    ("{p_en} and {q_en} often {act_en} together.", "{p_zh}和{q_zh}常常一起{act_zh}。"),
    ("{p_en} will {act_en} {future_en}.", "{future_zh}，{p_zh}要{act_zh}。"),
    ("{p_en} is {q_en}'s good friend.", "{p_zh}是{q_zh}的好朋友。"),
    ("{p_en}'s {family_en} is {a_job_en}.", "{p_zh}的{family_zh}是{job_zh}。"),
    ("{p_en} wants to be {a_job_en}.", "{p_zh}想当{job_zh}。"),
    ("{p_en} is {age} years old.", "{p_zh}{age}岁了。"),
    ("{p_en} is taller than {q_en}.", "{p_zh}比{q_zh}高。"),
    ("{p_en} is very {feel_en} today.", "{p_zh}今天很{feel_zh}。"),
    ('"Are you {feel_en}?" asked {p_en}.', "“你{feel_zh}吗？”{p_zh}问。"),
    ("{p_en} lives with {his_en} {family_en}.", "{p_zh}和{family_zh}住在一起。"),
    ("{p_en} told {his_en} {rel_en} the good news.", "{p_zh}把好消息告诉了{he_zh}的{rel_zh}。"),
    ("The capital of {c_en} is {cap_en}.", "{c_zh}的首都是{cap_zh}。"),
    ("{c_cap_en} is a country in {cont_en}.", "{c_zh}是{cont_zh}的一个国家。"),
    ("{p_en} comes from {c_en}.", "{p_zh}来自{c_zh}。"),
    ("{p_en} wants to visit {cap_en}, the capital of {c_en}.", "{p_zh}想去{c_zh}的首都{cap_zh}看看。"),
    ("Have you ever been to {cap_en}?", "你去过{cap_zh}吗？"),
    ("{animals_en} eat {food_en}.", "{animal_zh}吃{food_zh}。"),
    ("{animals_en} live {home_en}.", "{animal_zh}生活在{home_zh}。"),
    ("{p_en} saw {an_animal_en} {time_en}.", "{time_zh}，{p_zh}看见了一{am_zh}{animal_zh}。"),
    ("It is {weather_en} today.", "今天{weather_zh}。"),
    ("It was {weather_en} in {cap_en} yesterday.", "昨天{cap_zh}{weather_zh}。"),
    ("In {season_en} the weather is {sw_en}.", "{season_zh}天气{sw_zh}。"),
    ("{p_en} likes {season_en} best.", "{p_zh}最喜欢{season_zh}。"),
    ("Today is {day_en}, and tomorrow is {day2_en}.", "今天是{day_zh}，明天是{day2_zh}。"),
    ("We use {tool_en} to {use_en}.", "我们用{tool_zh}{use_zh}。"),
]
