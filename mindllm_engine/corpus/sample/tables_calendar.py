"""Aligned English and Chinese tables of units, opposites, festivals, seasons, months and colours.

Units and the calendar are exact; seasons are those of the northern half of the Earth, and the templates say so.
"""

from typing import NamedTuple

from mindllm_engine.corpus.sample.phrases import paired_rows


class Unit(NamedTuple):
    """`one` of the larger unit equals `factor` of the smaller."""

    one_en: str
    small_en: str
    one_zh: str  # after 一
    small_zh: str
    factor: int


class Festival(NamedTuple):
    """A festival, its date and its custom."""

    en: str
    zh: str
    date_en: str  # with its preposition
    date_zh: str
    custom_en: str  # after "people"
    custom_zh: str


class Season(NamedTuple):
    """A season in the northern half of the Earth."""

    en: str
    zh: str
    months_en: str
    months_zh: str
    weather_en: str  # after "the weather is"
    weather_zh: str  # after "天气"
    scene_en: str  # a clause
    scene_zh: str


UNITS = [
    Unit(one, small, one_zh, small_zh, int(factor))
    for (one, small, factor), (one_zh, small_zh) in paired_rows(
        """
        kilometre|metres|1000
        千米|米
        metre|centimetres|100
        米|厘米
        centimetre|millimetres|10
        厘米|毫米
        hour|minutes|60
        小时|分钟
        minute|seconds|60
        分钟|秒
        day|hours|24
        天|小时
        week|days|7
        个星期|天
        year|months|12
        年|个月
        century|years|100
        个世纪|年
        tonne|kilograms|1000
        吨|千克
        kilogram|grams|1000
        千克|克
        litre|millilitres|1000
        升|毫升
        yuan|jiao|10
        元|角
        """
    )
]

OPPOSITES = [
    (pair[0], pair[1], pair_zh[0], pair_zh[1])
    for pair, pair_zh in paired_rows(
        """
        hot|cold
        热|冷
        big|small
        大|小
        tall|short
        高|矮
        long|short
        长|短
        fast|slow
        快|慢
        light|heavy
        轻|重
        bright|dark
        亮|暗
        early|late
        早|晚
        wide|narrow
        宽|窄
        deep|shallow
        深|浅
        thick|thin
        厚|薄
        wet|dry
        湿|干
        near|far
        近|远
        clean|dirty
        干净|肮脏
        easy|difficult
        容易|困难
        happy|sad
        快乐|悲伤
        rich|poor
        富有|贫穷
        safe|dangerous
        安全|危险
        strong|weak
        强|弱
        quiet|noisy
        安静|吵闹
        """
    )
]

FESTIVALS = [
    Festival(en, zh, date, date_zh, custom, custom_zh)
    for (en, date, custom), (zh, date_zh, custom_zh) in paired_rows(
        """
        the Spring Festival|on the first day of the first lunar month|eat with their families and light firecrackers
        春节|农历正月初一|全家团圆，吃饺子，放鞭炮
        the Lantern Festival|on the fifteenth day of the first lunar month|eat sweet rice balls and look at lanterns
        元宵节|农历正月十五|吃元宵，看花灯
        the Dragon Boat Festival|on the fifth day of the fifth lunar month|eat rice dumplings and race dragon boats
        端午节|农历五月初五|吃粽子，赛龙舟
        the Mid-Autumn Festival|on the fifteenth day of the eighth lunar month|eat mooncakes and look at the moon
        中秋节|农历八月十五|吃月饼，赏月
        the Double Ninth Festival|on the ninth day of the ninth lunar month|climb hills and honour old people
        重阳节|农历九月初九|登高望远，敬老爱老
        New Year's Day|on the first of January|wish each other a happy new year
        元旦|一月一日|互相祝贺新年
        Christmas|on the twenty-fifth of December|decorate trees and give presents
        圣诞节|十二月二十五日|装饰圣诞树，互送礼物
        International Labour Day|on the first of May|take a holiday from work
        国际劳动节|五月一日|放假休息
        """
    )
]

SEASONS = [
    Season(en, zh, months, months_zh, weather, weather_zh, scene, scene_zh)
    for (en, months, weather, scene), (zh, months_zh, weather_zh, scene_zh) in paired_rows(
        """
        spring|March, April and May|warm|flowers open and birds sing
        春天|三月、四月和五月|温暖|百花开放，鸟儿歌唱
        summer|June, July and August|hot|children swim in the river
        夏天|六月、七月和八月|炎热|孩子们在河里游泳
        autumn|September, October and November|cool|leaves turn yellow and farmers harvest their crops
        秋天|九月、十月和十一月|凉爽|树叶变黄，农民收庄稼
        winter|December, January and February|cold|snow falls and ponds freeze
        冬天|十二月、一月和二月|寒冷|雪花飘落，池塘结冰
        """
    )
]

MONTHS_EN = ["January", "February", "March", "April", "May", "June", "July"]
MONTHS_EN += ["August", "September", "October", "November", "December"]
MONTH_DAYS = [31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31]  # of a common year
WEEKDAYS_EN = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
WEEKDAYS_ZH = ["星期一", "星期二", "星期三", "星期四", "星期五", "星期六", "星期日"]
COLOUR_MIXES = [
    ("red", "yellow", "orange", "红色", "黄色", "橙色"),
    ("red", "blue", "purple", "红色", "蓝色", "紫色"),
    ("blue", "yellow", "green", "蓝色", "黄色", "绿色"),
    ("red", "white", "pink", "红色", "白色", "粉色"),
    ("black", "white", "grey", "黑色", "白色", "灰色"),
]
