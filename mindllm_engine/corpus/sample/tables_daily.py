"""Aligned English and Chinese tables of daily life: people, things and their prices, jobs, tools.

Chinese nouns carry their measure word, so that no template has to guess one.
"""

from typing import NamedTuple

from mindllm_engine.corpus.sample.phrases import paired_rows


class Person(NamedTuple):
    """A first name in both languages; `he` says which pronouns go with it."""

    en: str
    zh: str
    he: bool


class Thing(NamedTuple):
    """Something that is counted, bought and sold; prices in yuan for one piece."""

    en: str
    plural_en: str
    zh: str
    measure_zh: str
    shop_en: str  # with its article
    shop_zh: str
    low: int
    high: int


class Job(NamedTuple):
    """What somebody does and where."""

    en: str
    zh: str
    place_en: str  # with its preposition
    place_zh: str
    does_en: str  # after "A teacher"
    does_zh: str


class Tool(NamedTuple):
    """A thing and what it is for."""

    en: str  # with its article, or a plural
    zh: str
    use_en: str  # after "We use it to"
    use_zh: str


PEOPLE = [
    Person(en, zh, he == "he")
    for (en, he), (zh,) in paired_rows(
        """
        Tom|he
        汤姆
        Mary|she
        玛丽
        Jack|he
        杰克
        Lucy|she
        露西
        Peter|he
        彼得
        Anna|she
        安娜
        David|he
        大卫
        Emma|she
        艾玛
        Xiao Ming|he
        小明
        Xiao Hong|she
        小红
        Li Hua|she
        李华
        Wang Wei|he
        王伟
        Xiao Gang|he
        小刚
        Chen Jie|she
        陈洁
        Liu Yang|he
        刘洋
        Xiao Yu|she
        小雨
        """
    )
]

THINGS = [
    Thing(en, plural, zh, measure, shop, shop_zh, int(low), int(high))
    for (en, plural, shop, low, high), (zh, measure, shop_zh) in paired_rows(
        """
        apple|apples|the fruit shop|2|5
        苹果|个|水果店
        orange|oranges|the fruit shop|2|5
        橙子|个|水果店
        pear|pears|the fruit shop|2|4
        梨|个|水果店
        watermelon|watermelons|the fruit shop|12|30
        西瓜|个|水果店
        banana|bananas|the fruit shop|1|3
        香蕉|根|水果店
        egg|eggs|the supermarket|1|2
        鸡蛋|个|超市
        fish|fish|the market|10|30
        鱼|条|菜市场
        cucumber|cucumbers|the market|1|3
        黄瓜|根|菜市场
        cabbage|cabbages|the market|3|6
        白菜|棵|菜市场
        book|books|the bookshop|18|60
        书|本|书店
        dictionary|dictionaries|the bookshop|40|90
        词典|本|书店
        map|maps|the bookshop|8|20
        地图|张|书店
        pencil|pencils|the stationery shop|1|3
        铅笔|支|文具店
        notebook|notebooks|the stationery shop|3|12
        笔记本|个|文具店
        ruler|rulers|the stationery shop|2|6
        尺子|把|文具店
        shirt|shirts|the clothes shop|50|120
        衬衫|件|服装店
        sweater|sweaters|the clothes shop|90|220
        毛衣|件|服装店
        skirt|skirts|the clothes shop|60|150
        裙子|条|服装店
        hat|hats|the clothes shop|25|80
        帽子|顶|服装店
        umbrella|umbrellas|the supermarket|20|60
        雨伞|把|超市
        towel|towels|the supermarket|8|25
        毛巾|条|超市
        cup|cups|the supermarket|8|35
        杯子|个|超市
        chair|chairs|the furniture shop|80|200
        椅子|把|家具店
        table|tables|the furniture shop|200|500
        桌子|张|家具店
        lamp|lamps|the furniture shop|50|180
        台灯|盏|家具店
        ball|balls|the toy shop|15|45
        球|个|玩具店
        kite|kites|the toy shop|15|50
        风筝|只|玩具店
        toy car|toy cars|the toy shop|20|70
        玩具车|辆|玩具店
        flower|flowers|the flower shop|5|15
        花|朵|花店
        cake|cakes|the bakery|15|80
        蛋糕|个|面包店
        """
    )
]

JOBS = [
    Job(en, zh, place, place_zh, does, does_zh)
    for (en, place, does), (zh, place_zh, does_zh) in paired_rows(
        """
        teacher|in a school|teaches students
        老师|学校|教学生知识
        doctor|in a hospital|treats sick people
        医生|医院|给病人看病
        nurse|in a hospital|takes care of patients
        护士|医院|照顾病人
        farmer|in the fields|grows crops
        农民|田里|种庄稼
        cook|in a kitchen|prepares meals
        厨师|厨房|做饭菜
        waiter|in a restaurant|serves food
        服务员|餐厅|给客人上菜
        driver|on the road|drives a bus or a car
        司机|路上|开公共汽车或小汽车
        pilot|in an aeroplane|flies the plane
        飞行员|飞机上|驾驶飞机
        sailor|on a ship|helps to sail the ship
        水手|船上|帮助船只航行
        librarian|in a library|looks after books
        图书管理员|图书馆|管理图书
        baker|in a bakery|bakes bread
        面包师|面包店|烤面包
        police officer|in the streets|keeps people safe
        警察|街上|保护人们的安全
        firefighter|at a fire station|puts out fires
        消防员|消防站|扑灭火灾
        postman|in the streets|delivers letters and parcels
        邮递员|街上|送信和包裹
        scientist|in a laboratory|does experiments
        科学家|实验室|做实验
        engineer|in a factory or an office|designs machines
        工程师|工厂或办公室|设计机器
        programmer|in an office|writes computer programs
        程序员|办公室|编写计算机程序
        actor|in a theatre|performs in plays
        演员|剧院|表演节目
        gardener|in a garden|looks after plants
        园丁|花园|照料花草
        tailor|in a workshop|makes clothes
        裁缝|裁缝店|做衣服
        """
    )
]

TOOLS = [
    Tool(en, zh, use, use_zh)
    for (en, use), (zh, use_zh) in paired_rows(
        """
        scissors|cut paper
        剪刀|剪纸
        a pen|write
        钢笔|写字
        an umbrella|keep off the rain
        雨伞|挡雨
        a key|open a lock
        钥匙|开锁
        a broom|sweep the floor
        扫帚|扫地
        a clock|tell the time
        钟表|看时间
        a thermometer|measure temperature
        温度计|测量温度
        a ruler|measure length
        尺子|量长度
        a compass|find north and south
        指南针|辨别方向
        a telescope|look at the stars
        望远镜|观察星星
        a microscope|look at very small things
        显微镜|观察微小的东西
        a refrigerator|keep food cold
        冰箱|冷藏食物
        a needle|sew clothes
        针|缝衣服
        a hammer|drive nails into wood
        锤子|钉钉子
        a saw|cut wood
        锯子|锯木头
        a spoon|eat soup
        勺子|喝汤
        a bucket|carry water
        水桶|提水
        a map|find our way
        地图|找路
        soap|wash our hands
        肥皂|洗手
        a camera|take photographs
        照相机|拍照
        a telephone|talk to people far away
        电话|和远处的人说话
        """
    )
]
